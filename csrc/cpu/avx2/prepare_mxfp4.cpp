// Activations for mxfp4 weights: see mxfp4_units.h.
#include <immintrin.h>

#include "entries.h"
#include "mxfp4_units.h"

namespace mimo_rt::cpu::avx2 {
namespace {

/// Units of the blocks with the smallest activations; what lies below them is rest. Every factor of
/// this file is a normal number then.
enum : int32_t { kMaxShift = 116 };

MIMO_RT_INLINE float power_of_two(int32_t exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

/// The starts of both digits, side by side.
MIMO_RT_INLINE void store_starts(__m256i high, __m256i low, Start* starts) {
  const __m256i bias = _mm256_set1_epi8(kWeightBias);
  const __m256i a = _mm256_maddubs_epi16(bias, high), b = _mm256_maddubs_epi16(bias, low);
  const __m256i pairs =
      _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  __m128i sum =
      _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi16(sum, _mm_unpackhi_epi64(sum, sum));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(starts),
                   _mm_sub_epi16(_mm_setzero_si128(), sum));
}

/// A block's bf16 as stored, those at `count` and beyond zero.
MIMO_RT_INLINE void load_block(const bf16_t* x, uint32_t count, __m256i (&bits)[2]) {
  alignas(32) bf16_t part[layout::kBlockK] = {};
  if (count < layout::kBlockK) {
    for (uint32_t i = 0; i < count; ++i) part[i] = x[i];
    x = part;
  }
  bits[0] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  bits[1] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16));
}

/// The largest magnitude of a block, as stored.
MIMO_RT_INLINE int32_t max_magnitude(const __m256i (&bits)[2]) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i largest = _mm256_max_epi16(_mm256_and_si256(bits[0], magnitude),
                                           _mm256_and_si256(bits[1], magnitude));
  // vphminposuw finds a minimum.
  const __m128i pair =
      _mm_max_epi16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i flipped = _mm_minpos_epu16(_mm_xor_si128(pair, _mm_set1_epi16(0x7fff)));
  return (_mm_cvtsi128_si32(flipped) & 0xffff) ^ 0x7fff;
}

/// The largest shift for which all |x| 2^shift <= 127.5 * 2^8, so that `high` fits a byte.
MIMO_RT_INLINE int32_t block_shift(int32_t max_bits) {
  // 2^15 - 2^7 is too much: such a significand, 0xff, counts as the next power of two.
  const int32_t shift = 14 + 127 - ((max_bits + 1) >> 7);
  return shift < kMaxShift ? shift : int32_t{kMaxShift};
}

MIMO_RT_INLINE __m256 widen(const __m256i (&bits)[2], uint32_t i) {
  const __m128i half = i % 2 ? _mm256_extracti128_si256(bits[i / 2], 1)
                             : _mm256_castsi256_si128(bits[i / 2]);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// Takes round(x * 2^shift) units out of x; returns them.
MIMO_RT_INLINE __m256 take_units(__m256& x, int32_t shift) {
  // Halves go up: what is left is in [-1/2, 1/2), times 256 in [-128, 128).
  const __m256 units = _mm256_floor_ps(
      _mm256_fmadd_ps(x, _mm256_set1_ps(power_of_two(shift)), _mm256_set1_ps(0.5f)));
  x = _mm256_fnmadd_ps(units, _mm256_set1_ps(power_of_two(-shift)), x);
  return units;
}

/// Restores the order of 32 bytes that were packed from four vectors of dwords.
MIMO_RT_INLINE __m256i in_order(__m256i bytes) {
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/// The units of a block as two digits.
MIMO_RT_INLINE void store_units(const __m256i (&units)[kVectors], Digits& out) {
  const __m256i a = _mm256_packs_epi32(units[0], units[1]);
  const __m256i b = _mm256_packs_epi32(units[2], units[3]);
  const __m256i byte = _mm256_set1_epi16(255), half = _mm256_set1_epi16(128);
  const __m256i low = in_order(
      _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte)));
  const __m256i high =
      in_order(_mm256_packs_epi16(_mm256_srai_epi16(_mm256_add_epi16(a, half), 8),
                                  _mm256_srai_epi16(_mm256_add_epi16(b, half), 8)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.high), high);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.low), low);
  store_starts(high, low, out.starts);
}

/// The units of a block, of every eight the even ones first.
MIMO_RT_INLINE void store_units(const __m256i (&units)[kVectors], Units& out) {
  const __m256i even_first = _mm256_setr_epi8(  //
      0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
      0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
#pragma GCC unroll 2
  for (uint32_t i = 0; i < 2; ++i) {
    const __m256i halves = _mm256_packs_epi32(units[2 * i], units[2 * i + 1]);
    const __m256i eights = _mm256_permute4x64_epi64(halves, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.values + 16 * i),
                        _mm256_shuffle_epi8(eights, even_first));
  }
}

/// `left` is what high and low leave of the block, `infinite` its infinities and NaN.
static uint32_t store_rests(const __m256 (&left)[kVectors], const __m256i (&infinite)[2],
                            Rests& rests) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < kVectors; ++i) {
    const __m256 rest = _mm256_or_ps(left[i], widen(infinite, i));
    _mm256_storeu_ps(rests.values + i * 8, rest);
    const __m256 is_left = _mm256_cmp_ps(rest, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    mask |= static_cast<uint32_t>(_mm256_movemask_ps(is_left)) << i * 8;
  }
  return mask;
}

/// Zeroes infinities and NaN.
static void take_infinite(__m256i (&bits)[2], __m256i (&infinite)[2]) {
  for (uint32_t i = 0; i < 2; ++i) {
    const __m256i magnitude = _mm256_and_si256(bits[i], _mm256_set1_epi16(0x7fff));
    const __m256i is_finite = _mm256_cmpgt_epi16(_mm256_set1_epi16(0x7f80), magnitude);
    infinite[i] = _mm256_andnot_si256(is_finite, bits[i]);
    bits[i] = _mm256_and_si256(is_finite, bits[i]);
  }
}

/// One block of one token, Out being Digits or Units.
template <class Out>
MIMO_RT_INLINE void prepare_block(__m256i (&bits)[2], Out& out, Rests& rests) {
  int32_t max_bits = max_magnitude(bits);
  __m256i infinite[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const bool is_finite = max_bits < 0x7f80;
  if (!is_finite) {
    take_infinite(bits, infinite);
    max_bits = max_magnitude(bits);
  }
  const int32_t shift = block_shift(max_bits);
  __m256 left[kVectors], any = _mm256_setzero_ps();
  __m256i units[kVectors];
#pragma GCC unroll 4
  for (uint32_t i = 0; i < kVectors; ++i) {
    left[i] = widen(bits, i);
    units[i] = _mm256_cvtps_epi32(take_units(left[i], shift));
    any = _mm256_or_ps(any, left[i]);
  }
  store_units(units, out);
  out.half_unit = power_of_two(-shift - 1);
  const __m256i is_zero =
      _mm256_cmpeq_epi32(_mm256_slli_epi32(_mm256_castps_si256(any), 1), _mm256_setzero_si256());
  const bool has_rests = !is_finite || _mm256_movemask_epi8(is_zero) != -1;
  out.rest_mask = has_rests ? store_rests(left, infinite, rests) : 0;
}

template <class Out>
static void prepare_tokens(const PrepareArgs& args) {
  auto* out = static_cast<Out*>(args.prepared);
  auto* rests = reinterpret_cast<Rests*>(static_cast<uint8_t*>(args.prepared) +
                                         units_bytes(args.num_tokens, args.k));
  for (uint32_t t = 0; t < args.num_tokens; ++t) {
    const bf16_t* row = args.x + uint64_t{args.row_ids ? args.row_ids[t] : t} * args.x_stride;
    for (uint32_t k = 0; k < args.k; k += layout::kBlockK) {
      __m256i bits[2];
      load_block(row + k, k < args.k_valid ? args.k_valid - k : 0, bits);
      const uint64_t i = uint64_t{k / layout::kBlockK} * args.num_tokens + t;
      prepare_block(bits, out[i], rests[i]);
    }
  }
}

MIMO_RT_INLINE uint32_t list_of(uint32_t num_rests) {
  return num_rests > kMaxListedRests ? uint32_t{kMaxListedRests} : num_rests - 1;
}

static void list_rests(const PrepareArgs& args) {
  const auto* units = static_cast<const Units*>(args.prepared);
  auto* list = reinterpret_cast<RestTokens*>(static_cast<uint8_t*>(args.prepared) +
                                             units_bytes(args.num_tokens, args.k) +
                                             rests_bytes(args.num_tokens, args.k));
  for (uint32_t first = 0; first < args.num_tokens; first += kListTokens)
    for (uint32_t block = 0; block < args.k / layout::kBlockK; ++block, ++list) {
      *list = {};
      const Units* row = units + uint64_t{block} * args.num_tokens;
      for (uint32_t t = first; t < args.num_tokens && t < first + kListTokens; ++t) {
        const auto count = static_cast<uint32_t>(__builtin_popcount(row[t].rest_mask));
        if (count) list->with[list_of(count)] |= uint64_t{1} << (t - first);
      }
    }
}

}  // namespace

uint64_t prepared_bytes_mxfp4(uint32_t num_tokens, uint32_t k) {
  return units_bytes(num_tokens, k) + rests_bytes(num_tokens, k) + lists_bytes(num_tokens, k);
}

void prepare_mxfp4(const PrepareArgs& args) {
  if (!are_many(args.num_tokens)) return prepare_tokens<Digits>(args);
  prepare_tokens<Units>(args);
  list_rests(args);
}

}  // namespace mimo_rt::cpu::avx2

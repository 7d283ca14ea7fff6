#include "weights/pack.h"

#include "core/checks.h"

#include <algorithm>
#include <cstring>

namespace mimo_rt {
namespace {

constexpr uint32_t kMaxTileRowBytes = kTileK * sizeof(float);
constexpr std::byte kUnitE8m0{127};

// Four words of one row; the compiler's generic vectors need no instruction set of their own.
using Words = uint32_t __attribute__((vector_size(16)));

constexpr uint32_t bits_per_k(PackedFormat format) {
  switch (format) {
    case PackedFormat::mxfp4: return 4;
    case PackedFormat::fp8_e4m3: return 8;
    case PackedFormat::bf16: return 16;
    case PackedFormat::f32: return 32;
  }
  return 0;
}

constexpr uint32_t row_bytes(PackedFormat format, uint32_t k) { return k * bits_per_k(format) / 8; }

/// Codes that are not finite have all bits of `mask` set in one of the word's elements: adding
/// `low` then carries into `top`.
struct NonFinite {
  uint32_t mask, low, top;
};

template <PackedFormat kFormat>
constexpr NonFinite non_finite() {
  if constexpr (kFormat == PackedFormat::fp8_e4m3) return {0x7f7f7f7f, 0x01010101, 0x80808080};
  if constexpr (kFormat == PackedFormat::bf16) return {0x7f807f80, 0x00800080, 0x80008000};
  if constexpr (kFormat == PackedFormat::f32) return {0x7f800000, 0x00800000, 0x80000000};
  return {0, 0, 0};
}

/// Nibbles 0..7 of each word to the order 0 4 1 5 2 6 3 7.
Words shuffle_nibbles(Words words) {
  Words changed = (words ^ (words >> 8)) & 0x0000ff00u;
  words ^= changed ^ (changed << 8);
  changed = (words ^ (words >> 4)) & 0x00f000f0u;
  return words ^ changed ^ (changed << 4);
}

/// Picks four of the eight words of `a` and `b`. GCC has the other spelling only since version 12.
template <uint32_t... kWordIdx>
Words pick(Words a, Words b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kWordIdx...);
#else
  return __builtin_shuffle(a, b, Words{kWordIdx...});
#endif
}

/// Transposes four words of four rows; `out` is the place of the first row in the first vector.
void store_transposed(const Words (&rows)[4], uint8_t* out) {
  const Words low01 = pick<0, 4, 1, 5>(rows[0], rows[1]);
  const Words low23 = pick<0, 4, 1, 5>(rows[2], rows[3]);
  const Words high01 = pick<2, 6, 3, 7>(rows[0], rows[1]);
  const Words high23 = pick<2, 6, 3, 7>(rows[2], rows[3]);
  const Words columns[4] = {pick<0, 1, 4, 5>(low01, low23), pick<2, 3, 6, 7>(low01, low23),
                            pick<0, 1, 4, 5>(high01, high23), pick<2, 3, 6, 7>(high01, high23)};
  for (uint32_t i = 0; i < 4; ++i)
    std::memcpy(out + i * kTileRows * sizeof(uint32_t), &columns[i], sizeof(Words));
}

/// Packs the codes of one tile. `rows` point to the tile's first byte of every row.
/// @return a word that is not zero in `non_finite<kFormat>().top` when a code is not finite
template <PackedFormat kFormat>
Words pack_codes(const std::byte* const* rows, uint32_t num_words, uint8_t* out) {
  constexpr NonFinite kBad = non_finite<kFormat>();
  Words seen = {};
  for (uint32_t word = 0; word < num_words; word += 4) {
    for (uint32_t row = 0; row < kTileRows; row += 4) {
      Words words[4];
      for (uint32_t i = 0; i < 4; ++i) {
        std::memcpy(&words[i], rows[row + i] + word * sizeof(uint32_t), sizeof(Words));
        if constexpr (kFormat == PackedFormat::mxfp4) words[i] = shuffle_nibbles(words[i]);
        if constexpr (kBad.mask != 0) seen |= (words[i] & kBad.mask) + kBad.low;
      }
      store_transposed(words, out + (word * kTileRows + row) * sizeof(uint32_t));
    }
  }
  return seen & kBad.top;
}

/// Scales of one tile; `num_stored` blocks of 32 k have a stored scale.
void pack_mxfp4_scales(std::span<const PackRow, kTileRows> rows, uint32_t first_block,
                       uint32_t num_stored, uint32_t num_blocks, uint8_t* out) {
  for (uint32_t block = 0; block < num_blocks; ++block)
    for (const PackRow& row : rows) {
      const bool is_stored = row.codes && block < num_stored;
      *out++ = std::to_integer<uint8_t>(is_stored ? row.scales[first_block + block] : kUnitE8m0);
    }
  const uint32_t padding = tile_bytes(PackedFormat::mxfp4, num_blocks) - num_blocks * 272;
  std::memset(out, 0, padding);
}

void pack_fp8_scales(std::span<const PackRow, kTileRows> rows, uint32_t tile, uint8_t* out) {
  for (uint32_t i = 0; i < kTileRows; ++i) {
    float scale = 1.0f;
    if (rows[i].codes) std::memcpy(&scale, rows[i].scales + tile * sizeof(float), sizeof(float));
    std::memcpy(out + i * sizeof(float), &scale, sizeof(float));
  }
}

template <PackedFormat kFormat>
bool pack_rows_of(uint32_t stored_k, uint32_t k, std::span<const PackRow, kTileRows> rows,
                  uint8_t* out) {
  alignas(kTileAlignment) std::byte stage[kTileRows][kMaxTileRowBytes];
  Words seen = {};
  for (uint32_t k_begin = 0; k_begin < k; k_begin += kTileK) {
    const uint32_t tile_k = std::min(kTileK, k - k_begin);
    const uint32_t stored = k_begin < stored_k ? std::min(tile_k, stored_k - k_begin) : 0;
    const std::byte* tile_rows[kTileRows];
    for (uint32_t i = 0; i < kTileRows; ++i) {
      const std::byte* codes = rows[i].codes;
      tile_rows[i] = codes ? codes + row_bytes(kFormat, k_begin) : stage[i];
      if (codes && stored == tile_k) continue;
      std::memset(stage[i], 0, row_bytes(kFormat, tile_k));
      if (codes && stored) std::memcpy(stage[i], tile_rows[i], row_bytes(kFormat, stored));
      tile_rows[i] = stage[i];
    }
    const uint32_t code_bytes = row_bytes(kFormat, tile_k);
    seen |= pack_codes<kFormat>(tile_rows, code_bytes / sizeof(uint32_t), out);
    uint8_t* scales = out + code_bytes * kTileRows;
    if constexpr (kFormat == PackedFormat::mxfp4)
      pack_mxfp4_scales(rows, k_begin / kBlockK, stored / kBlockK, tile_k / kBlockK, scales);
    if constexpr (kFormat == PackedFormat::fp8_e4m3)
      pack_fp8_scales(rows, k_begin / kTileK, scales);
    out += tile_bytes(kFormat, tile_k / kBlockK);
  }
  return (seen[0] | seen[1] | seen[2] | seen[3]) != 0;
}

/// Codes of one element of a packed row, as a number.
uint32_t packed_code(PackedFormat format, const uint8_t* tile, uint32_t row, uint32_t k) {
  const auto lane = [&](uint32_t vector) { return tile + vector * kTileAlignment + row * 4; };
  switch (format) {
    case PackedFormat::mxfp4: {
      const uint8_t byte = lane(k / 8)[k % 4];
      return k % 8 < 4 ? byte & 15u : byte >> 4;
    }
    case PackedFormat::fp8_e4m3: return lane(k / 4)[k % 4];
    case PackedFormat::bf16: {
      const uint8_t* half = lane(k / 2) + k % 2 * 2;
      return half[0] | uint32_t{half[1]} << 8;
    }
    case PackedFormat::f32: {
      uint32_t bits;
      std::memcpy(&bits, lane(k), sizeof bits);
      return bits;
    }
  }
  return 0;
}

}  // namespace

bool pack_rows(PackedFormat format, uint32_t stored_k, uint32_t k,
               std::span<const PackRow, kTileRows> rows, uint8_t* out) {
  switch (format) {
    case PackedFormat::mxfp4: return pack_rows_of<PackedFormat::mxfp4>(stored_k, k, rows, out);
    case PackedFormat::fp8_e4m3:
      return pack_rows_of<PackedFormat::fp8_e4m3>(stored_k, k, rows, out);
    case PackedFormat::bf16: return pack_rows_of<PackedFormat::bf16>(stored_k, k, rows, out);
    case PackedFormat::f32: return pack_rows_of<PackedFormat::f32>(stored_k, k, rows, out);
  }
  return false;
}

UnpackedRow unpack_row(const PackedMatrix& matrix, uint32_t row) {
  const PackedFormat format = matrix.format;
  const uint32_t lane = row % kTileRows;
  const uint32_t bits = bits_per_k(format);
  UnpackedRow unpacked;
  unpacked.codes.resize(row_bytes(format, matrix.k));
  const uint8_t* tile = matrix.row_group(row / kTileRows);
  for (uint32_t k_begin = 0; k_begin < matrix.k; k_begin += kTileK) {
    const uint32_t tile_k = std::min(kTileK, matrix.k - k_begin);
    for (uint32_t k = 0; k < tile_k; ++k) {
      const uint32_t code = packed_code(format, tile, lane, k);
      const uint32_t first_bit = (k_begin + k) * bits;
      for (uint32_t bit = 0; bit < bits; bit += 8)
        unpacked.codes[(first_bit + bit) / 8] |=
            static_cast<std::byte>(code >> bit << first_bit % 8);
    }
    const auto* scales =
        reinterpret_cast<const std::byte*>(tile) + row_bytes(format, tile_k) * kTileRows;
    if (format == PackedFormat::mxfp4)
      for (uint32_t block = 0; block < tile_k / kBlockK; ++block)
        unpacked.scales.push_back(scales[block * kTileRows + lane]);
    if (format == PackedFormat::fp8_e4m3)
      unpacked.scales.insert(unpacked.scales.end(), scales + lane * 4, scales + lane * 4 + 4);
    tile += tile_bytes(format, tile_k / kBlockK);
  }
  return unpacked;
}

}  // namespace mimo_rt

#include "core/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(MIMO_RT_X86)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace mimo_rt {
namespace {

alignas(16) constexpr uint32_t kRoundConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t load_big_endian(const std::byte* at) {
  uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return __builtin_bswap32(word);
}

void compress_plain(uint32_t* state, const std::byte* blocks, size_t num_blocks) {
  for (; num_blocks; --num_blocks, blocks += Sha256::kBlockBytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = load_big_endian(blocks + 4 * i);
    for (int i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] +
             (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    uint32_t s[8];
    std::copy_n(state, 8, s);
    for (uint32_t begin = 0; begin < 64; begin += 8)
#pragma GCC unroll 8  // the words change their places by name alone
      for (uint32_t i = 0; i < 8; ++i) {
        const auto at = [&s, i](uint32_t letter) -> uint32_t& { return s[(letter - i) % 8]; };
        const uint32_t a = at(0), b = at(1), c = at(2), e = at(4), f = at(5), g = at(6);
        const uint32_t first = at(7) + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                               ((e & f) ^ (~e & g)) + kRoundConstants[begin + i] + w[begin + i];
        at(3) += first;
        at(7) = first + (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) +
                ((a & b) ^ (a & c) ^ (b & c));
      }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  }
}

#if defined(MIMO_RT_X86)
// Two rounds per instruction; the state lies as ABEF and CDGH, highest word first.
__attribute__((target("sha,sse4.1"))) void compress_extensions(uint32_t* state,
                                                               const std::byte* blocks,
                                                               size_t num_blocks) {
  const auto set = [](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t words[4] = {d, c, b, a};
    __m128i vector;
    std::memcpy(&vector, words, sizeof vector);
    return vector;
  };
  const __m128i kSwap = set(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
  __m128i abef = set(state[0], state[1], state[4], state[5]);
  __m128i cdgh = set(state[2], state[3], state[6], state[7]);
  for (; num_blocks; --num_blocks, blocks += Sha256::kBlockBytes) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // words 4i..4i+3 of the schedule, modulo 16
    for (int i = 0; i < 4; ++i)
      w[i] = _mm_shuffle_epi8(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 16 * i)), kSwap);
#pragma GCC unroll 16  // all four vectors stay in registers
    for (int i = 0; i < 16; ++i) {
      __m128i& now = w[i % 4];
      if (i >= 4) {
        const __m128i &w1 = w[(i + 1) % 4], &w2 = w[(i + 2) % 4], &w3 = w[(i + 3) % 4];
        now = _mm_add_epi32(_mm_sha256msg1_epu32(now, w1), _mm_alignr_epi8(w3, w2, 4));
        now = _mm_sha256msg2_epu32(now, w3);
      }
      const __m128i sum = _mm_add_epi32(
          now, _mm_load_si128(reinterpret_cast<const __m128i*>(kRoundConstants + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  uint32_t words[8];
  std::memcpy(words, &abef, 16);
  std::memcpy(words + 4, &cdgh, 16);
  const int kPlace[8] = {5, 4, 1, 0, 7, 6, 3, 2};  // f e b a h g d c
  for (int i = 0; i < 8; ++i) state[kPlace[i]] = words[i];
}

bool has_extensions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_leaf = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0;
  return has_leaf && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}
#endif

}  // namespace

Sha256::Sha256([[maybe_unused]] bool use_extensions)
    : compress_(compress_plain),
      state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
#if defined(MIMO_RT_X86)
  static const bool kHasExtensions = has_extensions();
  if (use_extensions && kHasExtensions) compress_ = compress_extensions;
#endif
}

void Sha256::update(std::span<const std::byte> bytes) {
  const size_t used = num_bytes_ % kBlockBytes;
  num_bytes_ += bytes.size();
  if (used) {
    const size_t taken = std::min(bytes.size(), kBlockBytes - used);
    std::memcpy(pending_.data() + used, bytes.data(), taken);
    bytes = bytes.subspan(taken);
    if (used + taken < kBlockBytes) return;
    compress_(state_.data(), pending_.data(), 1);
  }
  const size_t num_blocks = bytes.size() / kBlockBytes;
  compress_(state_.data(), bytes.data(), num_blocks);
  bytes = bytes.subspan(num_blocks * kBlockBytes);
  if (!bytes.empty()) std::memcpy(pending_.data(), bytes.data(), bytes.size());
}

void Sha256::update_number(uint64_t number) {
  std::array<std::byte, 8> bytes;
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(number >> 8 * i);
  update(bytes);
}

Digest Sha256::finish() {
  const uint64_t num_bits = num_bytes_ * 8;
  const size_t used = num_bytes_ % kBlockBytes;
  std::array<std::byte, kBlockBytes + 8> padding{std::byte{0x80}};
  const size_t num_padding = (used < 56 ? 56 : 120) - used;
  for (size_t i = 0; i < 8; ++i)
    padding[num_padding + i] = static_cast<std::byte>(num_bits >> (56 - 8 * i));
  update(std::span(padding).first(num_padding + 8));
  Digest digest;
  for (size_t i = 0; i < digest.size(); ++i)
    digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - i % 4 * 8));
  return digest;
}

std::string to_hex(std::span<const uint8_t> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace mimo_rt

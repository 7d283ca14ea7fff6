#include "weights/random_values.h"

#include "core/numeric.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mimo_rt {
namespace {

constexpr uint64_t kBytes01 = 0x0101010101010101u;
constexpr uint32_t kE4m3Exponent = 0x78;
constexpr uint64_t kHalves1 = 0x0001000100010001u;

uint32_t biased_exponent(float value) {
  const auto exponent = std::lround(std::log2(value)) + 127;
  return static_cast<uint32_t>(std::clamp<long>(exponent, 4, 250));
}

/// Codes of zero and subnormals, which come out as if their exponent were 8.
constexpr uint32_t without_subnormal(uint32_t code) { return code & kE4m3Exponent ? code : code | 0x40; }

template <typename Next>
void fill_words(std::byte* out, uint64_t num_bytes, const Next& next) {
  for (uint64_t i = 0; i < num_bytes; i += sizeof(uint64_t)) {
    const uint64_t word = next();
    std::memcpy(out + i, &word, sizeof word);
  }
}

/// Four values: sign and mantissa at random, the exponent 0 to 3 below the largest.
uint64_t bf16_word(uint64_t exponents, Random& random) {
  const uint64_t word = random.next();
  return (word & kHalves1 * 0x807f) | (exponents - (word >> 1 & kHalves1 * 0x0180));
}

/// The largest exponent of all four.
uint64_t bf16_exponents(float scale) { return biased_exponent(scale) * kHalves1 << 7; }

}  // namespace

float Random::near(float mean, float spread) {
  const float unit = static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
  return mean + spread * unit;
}

float code_rms(PackedFormat format) {
  double sum = 0;
  if (format == PackedFormat::mxfp4) {
    for (uint8_t code = 0; code < 8; ++code) sum += std::pow(fp4_e2m1_to_f32(code), 2);
    return static_cast<float>(std::sqrt(sum / 8));
  }
  if (format == PackedFormat::fp8_e4m3) {
    for (uint32_t code = 0; code < 128; ++code)
      sum += std::pow(fp8_e4m3_to_f32(static_cast<uint8_t>(without_subnormal(code == 127 ? 126 : code))), 2);
    return static_cast<float>(std::sqrt(sum / 128));
  }
  // (1 + m/128) * 2^-{0,1,2,3}: see bf16_word.
  return static_cast<float>(std::sqrt(7.0 / 3.0 * (1 + 1.0 / 4 + 1.0 / 16 + 1.0 / 64) / 4));
}

void fill_mxfp4_codes(std::byte* out, uint64_t count, Random& random) {
  fill_words(out, count / 2, [&] { return random.next(); });
}

void fill_mxfp4_scales(std::byte* out, uint64_t count, float scale, Random& random) {
  const uint64_t base = biased_exponent(scale) * kBytes01;
  fill_words(out, count, [&] { return base - (random.next() & kBytes01); });
}

void fill_fp8_codes(std::byte* out, uint64_t count, Random& random) {
  fill_words(out, count, [&] {
    uint64_t word = random.next();
    // 0x7f and 0xff are NaN: they lose their lowest bit.
    word ^= ((word & kBytes01 * 0x7f) + kBytes01) >> 7 & kBytes01;
    // An exponent that is not 0 carries into the highest bit: see without_subnormal.
    const uint64_t exponents = word & kBytes01 * kE4m3Exponent;
    return word | (~(exponents + kBytes01 * kE4m3Exponent) & kBytes01 * 0x80) >> 1;
  });
}

void fill_bf16(std::byte* out, uint64_t count, float scale, Random& random) {
  const uint64_t exponents = bf16_exponents(scale);
  fill_words(out, count * 2, [&] { return bf16_word(exponents, random); });
}

void fill_f32(std::byte* out, uint64_t count, float scale, Random& random) {
  const uint64_t exponents = bf16_exponents(scale);
  fill_words(out, count * 4, [&] {
    const uint64_t word = bf16_word(exponents, random);
    return (word & 0xffff) << 16 | (word & 0xffff0000u) << 32;
  });
}

}  // namespace mimo_rt

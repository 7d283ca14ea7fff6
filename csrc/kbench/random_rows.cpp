#include "kbench/random_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/checks.h"
#include "kbench/subject.h"
#include "weights/random_fill.h"

namespace mimo_rt::kbench {
namespace {

constexpr std::string_view kFormatNames[] = {"mxfp4", "fp8_e4m3", "bf16", "f32"};

uint64_t bytes_of(PackedFormat format, uint64_t count) {
  switch (format) {
    case PackedFormat::mxfp4: return count / 2;
    case PackedFormat::fp8_e4m3: return count;
    case PackedFormat::bf16: return count * 2;
    case PackedFormat::f32: return count * 4;
  }
  return 0;
}

void fill(std::vector<std::byte>& bytes, uint64_t num_bytes, Random& random) {
  bytes.resize((num_bytes + 7) / 8 * 8);
  for (uint64_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t bits = random.next();
    std::memcpy(bytes.data() + i, &bits, 8);
  }
}

/// Sign and mantissa stay; the exponent becomes one of 2^-4 .. 2^-1.
uint16_t tame_bf16(uint16_t bits) {
  return static_cast<uint16_t>((bits & 0x807fu) | (123u + (bits >> 7 & 3u)) << 7);
}

/// Makes random bytes valid codes of moderate size.
void make_codes(PackedFormat format, std::span<std::byte> bytes) {
  if (format == PackedFormat::fp8_e4m3)
    for (std::byte& code : bytes)
      if ((code & std::byte{0x7f}) == std::byte{0x7f}) code ^= std::byte{1};  // NaN
  if (format != PackedFormat::bf16 && format != PackedFormat::f32) return;
  const uint64_t width = format == PackedFormat::bf16 ? 2 : 4;
  for (uint64_t i = width - 2; i < bytes.size(); i += width) {  // the upper half of an F32
    uint16_t bits;
    std::memcpy(&bits, bytes.data() + i, 2);
    bits = tame_bf16(bits);
    std::memcpy(bytes.data() + i, &bits, 2);
  }
}

}  // namespace

PackedFormat format_of(std::string_view name) {
  const auto* found = std::find(std::begin(kFormatNames), std::end(kFormatNames), name);
  MIMO_RT_CHECK(found != std::end(kFormatNames), invalid_argument, kWhere,
                "format: expected mxfp4, fp8_e4m3, bf16 or f32, got '", name, "'");
  return static_cast<PackedFormat>(found - std::begin(kFormatNames));
}

RandomRows::RandomRows(PackedFormat format, uint32_t k, uint64_t seed) {
  Random random(seed);
  const uint64_t row_bytes = bytes_of(format, k);
  fill(codes_, row_bytes * kTileRows, random);
  make_codes(format, codes_);
  uint64_t scale_bytes = 0;  // of a row
  if (format == PackedFormat::mxfp4) {
    scale_bytes = k / kBlockK;
    fill(scales_, scale_bytes * kTileRows, random);
    for (std::byte& scale : scales_)  // 2^-10 .. 2^-3
      scale = static_cast<std::byte>(117 + (std::to_integer<uint32_t>(scale) & 7u));
  } else if (format == PackedFormat::fp8_e4m3) {
    const uint32_t num_scales = (k + kTileK - 1) / kTileK;  // one row of blocks for all 16 rows
    std::vector<float> scales(num_scales);
    for (float& scale : scales)
      scale = (1.0f + static_cast<float>(random.next() % 64) / 64) / 64;
    scales_.resize(num_scales * sizeof(float));
    std::memcpy(scales_.data(), scales.data(), scales_.size());
  }
  for (uint32_t i = 0; i < kTileRows; ++i)
    rows_[i] = {codes_.data() + i * row_bytes,
                scales_.empty() ? nullptr : scales_.data() + i * scale_bytes};
}

std::vector<double> row_values(PackedFormat format, const UnpackedRow& row, uint32_t k) {
  std::vector<double> values(k);
  for (uint32_t i = 0; i < k; ++i) {
    const std::byte* codes = row.codes.data();
    switch (format) {
      case PackedFormat::mxfp4: {
        const auto byte = std::to_integer<uint32_t>(codes[i / 2]);
        const auto scale = std::to_integer<uint8_t>(row.scales[i / kBlockK]);
        values[i] = double{fp4_e2m1_to_f32(static_cast<uint8_t>(byte >> i % 2 * 4 & 15))} *
                    double{e8m0_to_f32(scale)};
        break;
      }
      case PackedFormat::fp8_e4m3: {
        float scale;
        std::memcpy(&scale, row.scales.data() + i / kTileK * sizeof scale, sizeof scale);
        values[i] = double{fp8_e4m3_to_f32(std::to_integer<uint8_t>(codes[i]))} * double{scale};
        break;
      }
      case PackedFormat::bf16: {
        bf16_t bits;
        std::memcpy(&bits, codes + i * sizeof bits, sizeof bits);
        values[i] = double{bf16_to_f32(bits)};
        break;
      }
      case PackedFormat::f32: {
        float value;
        std::memcpy(&value, codes + i * sizeof value, sizeof value);
        values[i] = double{value};
        break;
      }
    }
  }
  return values;
}

std::vector<bf16_t> random_bf16(uint64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<bf16_t> values(count);
  for (bf16_t& value : values) {
    const uint64_t bits = random.next();
    float sum = -2.0f;  // of four: nearly normal
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(bits >> i * 16 & 0xffff) * 0x1p-16f;
    value = f32_to_bf16(sum * 1.732f);
  }
  return values;
}

Product dot(std::span<const double> weights, const bf16_t* x) {
  std::vector<double> values(weights.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = double{bf16_to_f32(x[i])};
  return dot(weights, values);
}

Product dot(std::span<const double> weights, std::span<const double> x) {
  Product product;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double p = weights[i] * x[i];
    product.value += p;
    product.magnitude += std::abs(p);
  }
  return product;
}

double worst_of(double worst, double got, double exact, double bound) {
  const double ratio = std::abs(got - exact) / bound;
  return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : std::max(worst, ratio);
}

std::vector<uint32_t> spread_over(uint32_t num, uint32_t count) {
  std::vector<uint32_t> places;
  const uint32_t used = std::min(num, count);
  for (uint32_t i = 0; i < used; ++i)
    places.push_back(used == 1 ? 0
                               : static_cast<uint32_t>(uint64_t{i} * (num - 1) / (used - 1)));
  return places;
}

}  // namespace mimo_rt::kbench

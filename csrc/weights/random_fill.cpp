#include "weights/random_fill.h"

#include "core/numeric.h"
#include "weights/pack.h"
#include "weights/work_items.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

namespace mimo_rt {
namespace {

constexpr uint64_t kBytes01 = 0x0101010101010101u;
constexpr uint64_t kHalves1 = 0x0001000100010001u;

/// Root mean square of uniformly random codes of a format, without its scale.
float code_rms(PackedFormat format) {
  double sum = 0;
  if (format == PackedFormat::mxfp4) {
    for (uint8_t code = 0; code < 8; ++code) sum += std::pow(fp4_e2m1_to_f32(code), 2);
    return static_cast<float>(std::sqrt(sum / 8));
  }
  if (format == PackedFormat::fp8_e4m3) {
    for (uint8_t code = 0; code < 128; ++code)
      sum += std::pow(fp8_e4m3_to_f32(code == 127 ? 126 : code), 2);
    return static_cast<float>(std::sqrt(sum / 128));
  }
  // (1 + m/128) * 2^-{0,1,2,3}: see fill_bf16.
  return static_cast<float>(std::sqrt(7.0 / 3.0 * (1 + 1.0 / 4 + 1.0 / 16 + 1.0 / 64) / 4));
}

uint32_t biased_exponent(float value) {
  const auto exponent = std::lround(std::log2(value)) + 127;
  return static_cast<uint32_t>(std::clamp<long>(exponent, 4, 250));
}

/// Fills whole 8-byte words; `out` has room for them.
template <typename Next>
void fill_words(std::byte* out, uint64_t num_bytes, const Next& next) {
  for (uint64_t i = 0; i < num_bytes; i += sizeof(uint64_t)) {
    const uint64_t word = next();
    std::memcpy(out + i, &word, sizeof word);
  }
}

/// Random rows of one format with a root mean square near `rms`.
class RowMaker {
 public:
  RowMaker(PackedFormat format, uint32_t stored_k, float rms)
      : format_(format),
        stored_k_(stored_k),
        scale_(rms / code_rms(format)),
        code_bytes_((uint64_t{stored_k} * sizeof(float) + 15) / 8 * 8),
        scale_bytes_((uint64_t{stored_k} / kBlockK * sizeof(float) + 15) / 8 * 8),
        buffer_((code_bytes_ + scale_bytes_) * kTileRows) {}

  PackRow make(uint32_t lane, Random& random) {
    std::byte* codes = buffer_.data() + (code_bytes_ + scale_bytes_) * lane;
    std::byte* scales = codes + code_bytes_;
    switch (format_) {
      case PackedFormat::mxfp4: fill_mxfp4(codes, scales, random); break;
      case PackedFormat::fp8_e4m3: fill_fp8(codes, scales, random); break;
      case PackedFormat::bf16: fill_bf16(codes, random); break;
      case PackedFormat::f32: fill_f32(codes, random); break;
    }
    return {codes, scales};
  }

 private:
  void fill_mxfp4(std::byte* codes, std::byte* scales, Random& random) const {
    fill_words(codes, stored_k_ / 2, [&] { return random.next(); });
    const uint64_t base = biased_exponent(scale_) * kBytes01;
    // Half of the blocks are twice as small.
    fill_words(scales, stored_k_ / kBlockK, [&] { return base - (random.next() & kBytes01); });
  }

  void fill_fp8(std::byte* codes, std::byte* scales, Random& random) const {
    fill_words(codes, stored_k_, [&] {
      const uint64_t word = random.next();
      // 0x7f and 0xff are NaN: they lose their lowest bit.
      return word ^ (((word & kBytes01 * 0x7f) + kBytes01) >> 7 & kBytes01);
    });
    for (uint32_t block = 0; block * kTileK < stored_k_; ++block)
      std::memcpy(scales + block * sizeof scale_, &scale_, sizeof scale_);
  }

  /// Four values: sign and mantissa at random, the exponent 0 to 3 below the largest.
  uint64_t bf16_word(Random& random) const {
    const uint64_t word = random.next();
    const uint64_t exponents = biased_exponent(scale_) * kHalves1 << 7;
    return (word & kHalves1 * 0x807f) | (exponents - (word >> 1 & kHalves1 * 0x0180));
  }

  void fill_bf16(std::byte* codes, Random& random) const {
    fill_words(codes, uint64_t{stored_k_} * 2, [&] { return bf16_word(random); });
  }

  void fill_f32(std::byte* codes, Random& random) const {
    fill_words(codes, uint64_t{stored_k_} * 4, [&] {
      const uint64_t word = bf16_word(random);
      return (word & 0xffff) << 16 | (word & 0xffff0000u) << 32;
    });
  }

  PackedFormat format_;
  uint32_t stored_k_;
  float scale_;
  uint64_t code_bytes_, scale_bytes_;
  std::vector<std::byte> buffer_;
};

/// Norms near 1, sinks near 0, a router bias too small to favour an expert for good.
void fill_vector(const Arena& arena, const VectorSlot& slot, Random random) {
  auto* out = reinterpret_cast<float*>(arena.data() + slot.offset);
  const bool is_norm = slot.kind != VectorKind::sink_logits && slot.kind != VectorKind::router_bias;
  const float mean = is_norm ? 1.0f : 0.0f;
  const float spread = slot.kind == VectorKind::sink_logits ? 1.0f : is_norm ? 0.1f : 0.01f;
  for (uint32_t i = 0; i < slot.num_elements; ++i) {
    const float unit = static_cast<float>(random.next() >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
    out[i] = bf16_to_f32(f32_to_bf16(mean + spread * unit));
  }
}

}  // namespace

uint32_t first_lanes(uint32_t num_rows, uint32_t group) {
  const uint32_t left = num_rows - std::min(num_rows, group * kTileRows);
  return left >= kTileRows ? 0xffffu : (1u << left) - 1;
}

void fill_random(const RandomFill& fill) {
  // Offsets are unique: they give every vector and row group a generator of its own.
  const auto generator = [&](uint64_t offset) {
    return Random(fill.seed ^ Random::mix(offset + 1));
  };
  for (const VectorSlot& slot : fill.layout.vectors)
    fill_vector(fill.arena, slot, generator(slot.offset));
  const std::vector<GroupRange> ranges = split_into_ranges(fill.layout, kRangeBytes);
  WorkItems work;
  work.num_items = ranges.size();
  work.where = fill.where;
  work.run = [&](uint64_t item_idx) {
    const GroupRange& range = ranges[item_idx];
    const MatrixSlot& slot = fill.layout.matrices[range.matrix_idx];
    const PackedMatrix& matrix = *slot.matrix;
    RowMaker maker(matrix.format, slot.stored_k, fill.wanted_rms(slot));
    for (uint32_t group = range.begin; group < range.end; ++group) {
      uint8_t* out = group_place(fill.arena, slot, group);
      Random random = generator(static_cast<uint64_t>(out - fill.arena.data()));
      const uint32_t lanes = fill.valid_lanes(slot, group);
      std::array<PackRow, kTileRows> rows;
      for (uint32_t lane = 0; lane < kTileRows; ++lane)
        if (lanes >> lane & 1) rows[lane] = maker.make(lane, random);
      pack_rows(matrix.format, slot.stored_k, matrix.k, rows, out);
    }
    return (range.end - range.begin) * row_group_bytes(matrix.format, matrix.k);
  };
  run_work_items(work);
}

}  // namespace mimo_rt

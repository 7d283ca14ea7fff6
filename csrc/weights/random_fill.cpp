#include "weights/random_fill.h"

#include "core/numeric.h"
#include "weights/pack.h"
#include "weights/work_items.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace mimo_rt {
namespace {

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
      case PackedFormat::mxfp4:
        fill_mxfp4_codes(codes, stored_k_, random);
        fill_mxfp4_scales(scales, stored_k_ / kBlockK, scale_, random);
        break;
      case PackedFormat::fp8_e4m3:
        fill_fp8_codes(codes, stored_k_, random);
        for (uint32_t block = 0; block * kTileK < stored_k_; ++block)
          std::memcpy(scales + block * sizeof scale_, &scale_, sizeof scale_);
        break;
      case PackedFormat::bf16: fill_bf16(codes, stored_k_, scale_, random); break;
      case PackedFormat::f32: fill_f32(codes, stored_k_, scale_, random); break;
    }
    return {codes, scales};
  }

 private:
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
  for (uint32_t i = 0; i < slot.num_elements; ++i) out[i] = bf16_to_f32(f32_to_bf16(random.near(mean, spread)));
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

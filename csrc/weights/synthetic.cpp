// Weights::synthetic: random codes in the formats that a checkpoint of this config would have.
//
// Scales are chosen so that a matrix maps inputs of order one to outputs of order one: activations
// keep their size through all layers and no sum overflows. Every row group has its own generator,
// so the bytes depend on the seed alone, not on the number of threads.
#include "core/checks.h"
#include "core/numeric.h"
#include "weights/layout.h"
#include "weights/pack.h"
#include "weights/work_items.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.synthetic";
constexpr uint64_t kRangeBytes = uint64_t{1} << 20;
constexpr uint64_t kBytes01 = 0x0101010101010101u;
constexpr uint64_t kHalves1 = 0x0001000100010001u;

/// A counter through a bijective 64-bit mixer (finalizer of MurmurHash3, constants of variant 13).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15u); }

  static uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return bits ^ bits >> 31;
  }

 private:
  uint64_t state_;
};

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

/// The module whose stored format decides; parts of one matrix are stored alike.
std::string module_name(const ModelConfig& config, const MatrixSlot& slot) {
  const std::string layer = concat("model.layers.", slot.layer_idx, '.');
  const bool is_fused = config.qkv_layout == QkvLayout::fused;
  switch (slot.role) {
    case MatrixRole::qkv: return layer + (is_fused ? "self_attn.qkv_proj" : "self_attn.q_proj");
    case MatrixRole::o_proj: return layer + "self_attn.o_proj";
    case MatrixRole::gate_up: return layer + "mlp.gate_proj";
    case MatrixRole::down: return layer + "mlp.down_proj";
    case MatrixRole::expert_gate_up:
      return concat(layer, "mlp.experts.", slot.expert_idx, ".gate_proj");
    case MatrixRole::expert_down:
      return concat(layer, "mlp.experts.", slot.expert_idx, ".down_proj");
    default: return {};
  }
}

PackedFormat usual_format(const ModelConfig& config, const MatrixSlot& slot) {
  if (slot.role == MatrixRole::router) return PackedFormat::f32;
  const std::string module = module_name(config, slot);
  if (module.empty()) return PackedFormat::bf16;
  switch (config.format_of(module)) {
    case WeightFormat::plain: return PackedFormat::bf16;
    case WeightFormat::fp8_block: return PackedFormat::fp8_e4m3;
    case WeightFormat::mxfp4: return PackedFormat::mxfp4;
  }
  return PackedFormat::bf16;
}

/// Which rows of a group are not padding, as bits.
uint32_t valid_lanes(const WeightsData& data, const MatrixSlot& slot, uint32_t group) {
  const ModelConfig& config = data.config;
  uint32_t rows = config.hidden_size;
  uint32_t index = group;
  switch (slot.role) {
    case MatrixRole::embed:
    case MatrixRole::lm_head: rows = config.vocab_size; break;
    case MatrixRole::router: rows = config.num_experts; break;
    case MatrixRole::gate_up: rows = config.intermediate_size; index /= 2; break;
    case MatrixRole::expert_gate_up: rows = config.expert_intermediate_size; index /= 2; break;
    case MatrixRole::qkv: {
      const QkvTile& tile = data.layers[slot.layer_idx].qkv_tiles[group];
      uint32_t lanes = 0;
      for (uint32_t i = 0; i < kTileRows; ++i)
        if (qkv_tile_element(tile, data.layer_config(slot), i) >= 0) lanes |= 1u << i;
      return lanes;
    }
    default: break;
  }
  const uint32_t left = rows - std::min(rows, index * kTileRows);
  return left >= kTileRows ? 0xffffu : (1u << left) - 1;
}

/// Outputs of order one, except where the model wants less or more.
float wanted_rms(const WeightsData& data, const MatrixSlot& slot) {
  if (slot.role == MatrixRole::embed && !data.is_tied()) return 1.0f;
  const bool feeds_residual = slot.role == MatrixRole::o_proj || slot.role == MatrixRole::down ||
                              slot.role == MatrixRole::expert_down;
  const bool makes_logits = slot.role == MatrixRole::embed || slot.role == MatrixRole::lm_head;
  const float gain = feeds_residual ? 0.5f : makes_logits ? 2.0f : 1.0f;
  return gain / std::sqrt(static_cast<float>(slot.stored_k));
}

/// Norms near 1, sinks near 0, a router bias too small to favour an expert for good.
void fill_vector(const WeightsData& data, const VectorSlot& slot, Random random) {
  auto* out = reinterpret_cast<float*>(data.arena.data() + slot.offset);
  const bool is_norm = slot.kind != VectorKind::sink_logits && slot.kind != VectorKind::router_bias;
  const float mean = is_norm ? 1.0f : 0.0f;
  const float spread = slot.kind == VectorKind::sink_logits ? 1.0f : is_norm ? 0.1f : 0.01f;
  for (uint32_t i = 0; i < slot.num_elements; ++i) {
    const float unit = static_cast<float>(random.next() >> 40) * 0x1p-23f - 1.0f;  // [-1, 1)
    out[i] = bf16_to_f32(f32_to_bf16(mean + spread * unit));
  }
}

}  // namespace

Weights Weights::synthetic(const ModelConfig& config, uint64_t seed) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  const WeightsData& data = *impl;
  const WeightsLayout layout = plan_layout(
      *impl, [&](const MatrixSlot& slot) { return usual_format(data.config, slot); });
  allocate(*impl, layout, kWhere);
  // Offsets are unique: they give every vector and row group a generator of its own.
  const auto generator = [&](uint64_t offset) { return Random(seed ^ Random::mix(offset + 1)); };
  for (const VectorSlot& slot : layout.vectors) fill_vector(data, slot, generator(slot.offset));
  const std::vector<GroupRange> ranges = split_into_ranges(layout, kRangeBytes);
  WorkItems work;
  work.num_items = ranges.size();
  work.where = kWhere;
  work.run = [&](uint64_t item_idx) {
    const GroupRange& range = ranges[item_idx];
    const MatrixSlot& slot = layout.matrices[range.matrix_idx];
    const PackedMatrix& matrix = *slot.matrix;
    RowMaker maker(matrix.format, slot.stored_k, wanted_rms(data, slot));
    for (uint32_t group = range.begin; group < range.end; ++group) {
      uint8_t* out = group_place(data, slot, group);
      Random random = generator(static_cast<uint64_t>(out - data.arena.data()));
      const uint32_t lanes = valid_lanes(data, slot, group);
      std::array<PackRow, kTileRows> rows;
      for (uint32_t lane = 0; lane < kTileRows; ++lane)
        if (lanes >> lane & 1) rows[lane] = maker.make(lane, random);
      pack_rows(matrix.format, slot.stored_k, matrix.k, rows, out);
    }
    return (range.end - range.begin) * row_group_bytes(matrix.format, matrix.k);
  };
  run_work_items(work);
  return Weights(std::move(impl));
}

}  // namespace mimo_rt

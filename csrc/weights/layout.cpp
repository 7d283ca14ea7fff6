#include "weights/layout.h"

#include "core/available_memory.h"
#include "core/checks.h"
#include "weights/page_placement.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights";
constexpr uint64_t kMaxTotalBytes = uint64_t{1} << 46;
constexpr uint64_t kMaxRows = uint64_t{1} << 31;
constexpr uint64_t kMaxQkvRows = uint64_t{1} << 28;  // of all layers, packed: bounds their tiles

class Planner {
 public:
  Planner(WeightsData& data, const FormatOf& format_of)
      : data_(data), config_(data.config), builder_(format_of) {}

  WeightsLayout plan() {
    check_qkv_rows();
    data_.layers.resize(config_.num_layers);
    add({MatrixRole::embed, 0, 0, &data_.embed}, config_.vocab_size, config_.hidden_size);
    for (uint32_t i = 0; i < config_.num_layers; ++i) add_layer(i);
    add({VectorKind::final_norm, 0, config_.hidden_size, &data_.final_norm});
    if (!data_.is_tied())
      add({MatrixRole::lm_head, 0, 0, &data_.lm_head}, config_.vocab_size, config_.hidden_size);
    return builder_.take();
  }

 private:
  void add(const MatrixSlot& slot, uint64_t rows, uint64_t k) { builder_.add(slot, rows, k); }
  void add(const VectorSlot& slot) { builder_.add(slot); }

  // The tables of tiles are made before memory is known to suffice.
  void check_qkv_rows() const {
    uint64_t num_rows = 0;
    for (const LayerConfig& layer : config_.layers) num_rows += num_qkv_tiles(layer) * kTileRows;
    MIMO_RT_CHECK(num_rows <= kMaxQkvRows, unsupported_shape, kWhere, "expected at most ",
                  kMaxQkvRows, " packed qkv rows in all layers, got ", num_rows);
  }

  void add_layer(uint32_t i) {
    LayerWeights& layer = data_.layers[i];
    const LayerConfig& shape = config_.layers[i];
    const uint64_t hidden = config_.hidden_size;
    add({VectorKind::attn_norm, i, config_.hidden_size, &layer.attn_norm});
    add({VectorKind::mlp_norm, i, config_.hidden_size, &layer.mlp_norm});
    if (shape.has_sink) add({VectorKind::sink_logits, i, shape.num_q_heads, &layer.sink_logits});
    layer.qkv_tiles = qkv_tiles(shape);
    add({MatrixRole::qkv, i, 0, &layer.qkv}, layer.qkv_tiles.size() * kTileRows, hidden);
    const uint64_t attended = uint64_t{shape.num_q_heads} * shape.v_head_dim;
    add({MatrixRole::o_proj, i, 0, &layer.o_proj}, hidden, attended);
    if (shape.is_moe) {
      add_experts(i);
    } else {
      add({MatrixRole::gate_up, i, 0, &layer.gate_up}, gate_up_rows(config_.intermediate_size),
          hidden);
      add({MatrixRole::down, i, 0, &layer.down}, hidden, config_.intermediate_size);
    }
  }

  void add_experts(uint32_t i) {
    LayerWeights& layer = data_.layers[i];
    const uint64_t hidden = config_.hidden_size, width = config_.expert_intermediate_size;
    add({MatrixRole::router, i, 0, &layer.router}, config_.num_experts, hidden);
    add({VectorKind::router_bias, i, config_.num_experts, &layer.router_bias});
    layer.expert_gate_up.resize(config_.num_experts);
    layer.expert_down.resize(config_.num_experts);
    for (uint32_t expert = 0; expert < config_.num_experts; ++expert) {
      add({MatrixRole::expert_gate_up, i, expert, &layer.expert_gate_up[expert]},
          gate_up_rows(width), hidden);
      add({MatrixRole::expert_down, i, expert, &layer.expert_down[expert]}, hidden, width);
    }
  }

  WeightsData& data_;
  const ModelConfig& config_;
  LayoutBuilder builder_;
};

}  // namespace

void LayoutBuilder::add(MatrixSlot slot, uint64_t rows, uint64_t k) {
  MIMO_RT_CHECK(rows <= kMaxRows && k <= kMaxRows, unsupported_shape, kWhere,
                "expected a matrix of at most ", kMaxRows, " x ", kMaxRows, ", got ", rows, " x ",
                k);
  slot.stored_k = static_cast<uint32_t>(k);
  slot.matrix->rows = round_up(static_cast<uint32_t>(rows), kTileRows);
  slot.matrix->k = round_up(slot.stored_k, kBlockK);
  slot.matrix->format = format_of_(slot);
  MIMO_RT_CHECK(slot.matrix->format != PackedFormat::mxfp4 || k % kBlockK == 0, unsupported_shape,
                kWhere, "expected MXFP4 rows of a multiple of ", kBlockK, " weights, got ", k);
  slot.offset = reserve(slot.matrix->bytes());
  layout_.matrices.push_back(slot);
}

void LayoutBuilder::add(VectorSlot slot) {
  slot.offset = reserve(uint64_t{slot.num_elements} * sizeof(float));
  layout_.vectors.push_back(slot);
}

uint64_t LayoutBuilder::reserve(uint64_t num_bytes) {
  const uint64_t offset = layout_.total_bytes;
  const uint64_t rounded = (num_bytes + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
  MIMO_RT_CHECK(rounded <= kMaxTotalBytes - offset, unsupported_shape, kWhere, "expected at most ",
                kMaxTotalBytes, " bytes of packed weights, got more");
  layout_.total_bytes += rounded;
  return offset;
}

WeightsLayout plan_layout(WeightsData& data, const FormatOf& format_of) {
  return Planner(data, format_of).plan();
}

Arena allocate(const WeightsLayout& layout, const char* where, const PagePlacement* placement) {
  check_memory(layout.total_bytes, available_memory_bytes(), where);
  Arena arena(layout.total_bytes, where);
  if (placement) place_pages(arena, layout, *placement);
  return arena;
}

void point_into(const Arena& arena, const WeightsLayout& layout) {
  for (const MatrixSlot& slot : layout.matrices) slot.matrix->data = arena.data() + slot.offset;
  for (const VectorSlot& slot : layout.vectors)
    *slot.data = reinterpret_cast<const float*>(arena.data() + slot.offset);
}

void point_into_arena(WeightsData& data, const WeightsLayout& layout) {
  point_into(data.arena, layout);
  if (data.is_tied()) data.lm_head = data.embed;
}

std::vector<GroupRange> split_into_ranges(const WeightsLayout& layout, uint64_t range_bytes) {
  std::vector<GroupRange> ranges;
  for (uint32_t i = 0; i < layout.matrices.size(); ++i) {
    const PackedMatrix& matrix = *layout.matrices[i].matrix;
    const uint64_t group_bytes = std::max<uint64_t>(row_group_bytes(matrix.format, matrix.k), 1);
    const uint32_t num_groups = matrix.num_row_groups();
    const auto step = static_cast<uint32_t>(std::max<uint64_t>(range_bytes / group_bytes, 1));
    for (uint32_t begin = 0; begin < num_groups; begin += std::min(step, num_groups - begin))
      ranges.push_back({i, begin, begin + std::min(step, num_groups - begin)});
  }
  return ranges;
}

}  // namespace mimo_rt

// What lies where in the arena: one walk over the config, shared by loaded and synthetic weights.
#pragma once

#include "checkpoint/tensor_table.h"
#include "weights/arena.h"
#include "weights/weights.h"

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace mimo_rt {

enum class MatrixRole : uint8_t {
  embed, lm_head, qkv, o_proj, router, gate_up, down, expert_gate_up, expert_down,
  context_fc,  // of a draft
};

/// A packed matrix of the model and its place.
struct MatrixSlot {
  MatrixRole role;
  uint32_t layer_idx = 0, expert_idx = 0;
  PackedMatrix* matrix = nullptr;  ///< in a WeightsData, `data` is set by `point_into`
  uint32_t stored_k = 0;           ///< elements per row before padding
  uint64_t offset = 0;             ///< in the arena
};

/// A float array of the model and its place.
struct VectorSlot {
  VectorKind kind;
  uint32_t layer_idx = 0;
  uint32_t num_elements = 0;
  const float** data = nullptr;
  uint64_t offset = 0;
};

/// The state behind `Weights`. The slots of a layout point into it: it must not move after `plan`.
struct WeightsData {
  ModelConfig config;
  std::vector<LayerWeights> layers;
  PackedMatrix embed, lm_head;
  const float* final_norm = nullptr;
  Arena arena;
  PackedCacheReport cache_report;

  const LayerConfig& layer_config(const MatrixSlot& slot) const {
    return config.layers[slot.layer_idx];
  }
  bool is_tied() const { return config.tie_word_embeddings; }
};

struct Weights::Impl : WeightsData {};

struct WeightsLayout {
  std::vector<MatrixSlot> matrices;  ///< in the order of their offsets
  std::vector<VectorSlot> vectors;
  uint64_t total_bytes = 0;
};

using FormatOf = std::function<PackedFormat(const MatrixSlot&)>;

/// Gives matrices and vectors their places, one after the other.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(const FormatOf& format_of) : format_of_(format_of) {}

  /// Sizes `*slot.matrix`. @throws Error{unsupported_shape} when the sizes overflow
  void add(MatrixSlot slot, uint64_t rows, uint64_t k);
  /// @throws Error{unsupported_shape} when the sizes overflow
  void add(VectorSlot slot);
  WeightsLayout take() { return std::move(layout_); }

 private:
  uint64_t reserve(uint64_t num_bytes);

  const FormatOf& format_of_;
  WeightsLayout layout_;
};

/// Rows of a packed gate_up whose halves have `width` rows each.
constexpr uint64_t gate_up_rows(uint64_t width) {
  return 2 * ((width + kTileRows - 1) / kTileRows * kTileRows);
}

/// Sizes every matrix and vector of `data.config` and gives it a place.
/// @throws Error{unsupported_shape} when the sizes overflow
WeightsLayout plan_layout(WeightsData& data, const FormatOf& format_of);

/// A new arena for `layout`, its pages where `placement` wants them (nullptr: wherever they are written first).
/// @throws Error{out_of_memory} before any page is used
Arena allocate(const WeightsLayout& layout, const char* where, const PagePlacement* placement = nullptr);

/// Sets the pointers of all slots.
void point_into(const Arena& arena, const WeightsLayout& layout);
/// The same for the arena of `data`.
void point_into_arena(WeightsData& data, const WeightsLayout& layout);

/// Row groups [begin, end) of one matrix: what one thread packs before it looks for more.
struct GroupRange {
  uint32_t matrix_idx = 0;
  uint32_t begin = 0, end = 0;
};

/// One range of work: large enough to hide the bookkeeping, small enough that the source pages that
/// all threads hold at once stay far below the 15 % that loading may need beyond the result.
inline constexpr uint64_t kRangeBytes = uint64_t{1} << 20;

/// Splits all matrices into ranges of about `range_bytes`, in the order of the arena.
std::vector<GroupRange> split_into_ranges(const WeightsLayout& layout, uint64_t range_bytes);

/// The place of a row group. The arena is ours: only the views in `PackedMatrix` are const.
inline uint8_t* group_place(const Arena& arena, const MatrixSlot& slot, uint32_t group) {
  return arena.data() + slot.offset + group * row_group_bytes(slot.matrix->format, slot.matrix->k);
}

}  // namespace mimo_rt

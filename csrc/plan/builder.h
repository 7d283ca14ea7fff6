// Makes plans. A step is a sequence of phases, one per op; every phase splits its tiles over the workers once and for
// all, and each of its tasks adds 1 to the phase's counter. A task of the next phase waits for the full count.
//
// Tasks of the first phase wait for the gate; all others begin after them, by the counters of their own epoch.
//
// A tag edge orders only the buffer that it brings. So the tasks behind one wait for two phases: that of the buffer, and
// the last one from which everything else follows.
#pragma once

#include "plan/costs.h"
#include "plan/task.h"

#include <mimo_rt/plan.h>

#include <string>
#include <vector>

namespace mimo_rt {

/// Lives only inside Plan::build: keeps references to its arguments.
class PlanBuilder {
 public:
  /// @throws Error{invalid_argument, unsupported_shape}
  PlanBuilder(const ModelConfig& config, const PlanOptions& options, const DraftConfig* draft);
  Plan build();

 private:
  /// A phase that tasks wait for.
  struct Source {
    uint32_t counter;
    std::vector<bool> producers;  ///< [num_workers] who has a task in it
  };
  /// One worker's part of a phase.
  struct Share {
    uint32_t worker_idx, tile_first, tile_stride, tile_end;
    double num_tiles;  ///< expected, for the cost
  };

  void make_shape();
  void check_shape() const;
  void make_buffers();
  void make_draft_buffers();
  void add_buffer(std::string name, BufferInfo::Space space, uint64_t rows, uint64_t cols, uint32_t element_bytes);
  void add_layer(uint32_t layer_idx);
  void add_moe(uint16_t layer_idx);
  void add_dense(uint16_t layer_idx);
  /// Tiles of a row's attention when steps have up to `num_rows` rows.
  uint32_t attention_shares(const LayerConfig& layer, uint32_t num_rows) const;
  void add_sampling(TaskKind kind, double share_ns);
  void add_norm(uint16_t layer_idx, bool mlp_norm);
  void add_draft_norm(uint16_t layer_idx, bool mlp_norm);
  void add_context();  ///< keys and values of earlier positions for the draft
  void add_draft();    ///< one pass of the draft over its block
  void add_draft_layer(uint16_t layer_idx);
  /// A phase of matrix `kind` of the draft: rows of `k` weights, `rows_per_tile` of them a tile, for `num_rows` rows.
  void add_draft_matrix(TaskKind kind, uint16_t layer_idx, uint32_t k, double rows_per_tile, uint32_t num_rows);

  /// Adds one task per share. The tasks wait for `sources_`, which is this phase alone afterwards.
  void add_phase(TaskKind kind, uint16_t layer_idx, const std::vector<Share>& shares, double tile_ns,
                 bool mlp_norm = false);
  void add_waits(uint32_t worker_idx, Task& task) const;
  std::vector<Share> one_worker() const;
  std::vector<Share> contiguous(uint32_t num_tiles, double tile_ns) const;
  std::vector<Share> strided(uint32_t tiles_per_row, uint32_t max_rows, double expected_rows, double tile_ns) const;
  void add_contiguous(TaskKind kind, uint16_t layer_idx, double tile_ns);
  /// `tiles_per_row` tiles of each of up to `max_rows` rows.
  void add_strided(TaskKind kind, uint16_t layer_idx, uint32_t tiles_per_row, uint32_t max_rows, double expected_rows,
                   double tile_ns, bool mlp_norm = false);
  void finish();

  const ModelConfig& config_;
  const DraftConfig* const draft_;  ///< nullptr: none
  const CostModel costs_;
  Plan plan_;
  bool fuse_norms_ = false;
  uint32_t num_expert_shares_ = 0;        ///< tiles per expert; the same in all MoE layers
  std::vector<std::vector<Task>> lists_;  ///< [num_workers]
  std::vector<Source> sources_;           ///< what the next phase waits for
};

/// @throws Error{unsupported_shape} for a draft that no plan can hold, or not one for this target
void check_draft(const DraftConfig& draft, const ModelConfig& config);

/// How many tiles to cut one expert's `num_pairs` pairs of row groups into, so that num_workers striding workers finish
/// together for any number of active experts up to max_active. A tile costs `tile_price` pairs beside those it has.
uint32_t choose_expert_shares(uint32_t num_pairs, uint32_t num_workers, uint32_t max_active, double tile_price = 1.0 / 16);

}  // namespace mimo_rt

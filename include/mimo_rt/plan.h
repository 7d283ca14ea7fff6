// The plan: for every worker its list of tasks, the buffers, the counters, and a proof that it is sound.
#pragma once

#include <mimo_rt/api.h>
#include <mimo_rt/config.h>
#include <mimo_rt/costs.h>
#include <mimo_rt/draft.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace mimo_rt {

struct Task;  ///< the 64-byte record, csrc/plan/task.h

struct PlanOptions {
  uint32_t num_workers = 1;
  uint32_t max_tokens = 1;      ///< rows a step may have (1..4096)
  uint32_t max_logit_rows = 1;  ///< rows of logits a step may ask for (1..max_tokens)
  /// Fuse RMSNorm into its consumers: each worker normalises all rows for itself. One edge less per norm, more work.
  enum class FuseNorm : uint8_t { automatic, yes, no } fuse_norm = FuseNorm::automatic;
  /// A round (draft, verify, accept) instead of a step. max_tokens and max_logit_rows must be the block size: the draft's,
  /// or without one 1..kMaxBlockSize: then the engine looks the drafts up in the text.
  bool is_round = false;
  uint32_t max_context_rows = 0;  ///< rows of draft context per step; 1..4096 with a draft, else 0
  /// 0: shares of attention are q heads. Else the CUDA kernels' cut: shares are kv heads, or equal parts of the splits of
  /// so many keys that a kv head has, while there are workers for them. A multiple of 64; it decides the order of sums.
  uint32_t attention_split_keys = 0;
  /// A route of at most 256 (token, expert) pairs comes to the expert tasks by a tag edge: the CUDA kernel is fastest so.
  bool tag_edges = false;
  /// All workers have a share in drawing a step's or round's tokens, as the CUDA kernel does it; else one draws them all.
  bool sample_by_all = false;
  CostTable costs;              ///< measured for num_workers workers; they share out work by it
  // What estimates assume of a worker where nothing was measured; the defaults are those of a core of a CPU.
  double bytes_per_ns = 10.0;       ///< weights
  double macs_per_ns = 24.0;        ///< multiply-adds, all conversions included
  double task_overhead_ns = 300.0;  ///< waiting for the edge, reading the task, signalling
};

/// What every plan for the CUDA engine has: how its kernels want the work to be cut, the most rows of a round and the
/// most with logits, estimates of a multiprocessor.
MIMO_RT_API PlanOptions cuda_plan_options();
/// The most rows of a step of the CUDA engine: 64, less for a model with more than 8 experts per token.
MIMO_RT_API uint32_t cuda_max_step_tokens(const ModelConfig& config);

/// The shapes that a plan depends on: with them Plan::verify() needs no config.
struct PlanShape {
  struct Layer {
    bool is_moe = false;
    uint32_t num_q_heads = 0, num_kv_heads = 0, qk_head_dim = 0, v_head_dim = 0, rotary_dim = 0;
  };
  uint32_t hidden_size = 0, vocab_size = 0;
  uint32_t dense_width = 0, expert_width = 0;  ///< columns of `act`
  uint32_t num_experts = 0, experts_per_token = 0;
  std::vector<Layer> layers;
  /// The draft; num_layers 0: there is none, and block_size is PlanOptions::max_tokens in a round, else 0.
  struct Draft {
    uint32_t num_layers = 0, block_size = 0, intermediate_size = 0;
    uint32_t vocab_size = 0;  ///< columns of `draft_logits`: tokens that the draft can propose
    uint32_t num_q_heads = 0, num_kv_heads = 0, qk_head_dim = 0, v_head_dim = 0, rotary_dim = 0;
    std::vector<uint32_t> target_layer_ids;  ///< captured layers, in the order of their columns in `features`
  } draft;
};

/// A named range of an arena, or an external array. Rows x cols of elements; a row is `cols` elements.
struct BufferInfo {
  std::string name;          ///< "x", "h", "q", "attn", "router_logits", "route", "act", "logits", "sampled", "kv.3", …
  enum class Space : uint8_t { arena, kv, input, output } space = Space::arena;
  uint32_t rows = 0, cols = 0;
  uint32_t element_bytes = 0;
  uint64_t offset = 0;       ///< in the activation arena, 64-byte aligned
  uint64_t bytes = 0;        ///< >= rows * cols * element_bytes
};

struct CounterInfo {
  std::string name;    ///< "layer 3 o_proj"
  uint32_t total = 0;  ///< signals per epoch
  /// What the CUDA kernel makes of it. tag: one task's `buffer` reaches those that wait for it as words that carry the
  /// epoch; it orders nothing else, and nobody counts. Other executors count both kinds.
  enum class Kind : uint8_t { counter, tag } kind = Kind::counter;
  uint16_t buffer = 0xffff;  ///< tag: the id of the buffer that the task writes
};

/// What Plan::verify() proved, in numbers.
struct VerifyReport {
  uint64_t num_tasks = 0, num_waits = 0, num_accesses = 0, num_ordered_pairs = 0;
  uint32_t num_workers = 0, num_counters = 0, num_buffers = 0;
  double seconds = 0.0;
  MIMO_RT_API std::string to_string() const;
};

/// A pure function of (config, options): equal inputs give equal bytes. Immutable; serves any step with
/// 1..max_tokens tokens. Never empty: moving copies, and copies share the tasks.
class MIMO_RT_API Plan {
 public:
  Plan(const Plan&) = default;
  Plan& operator=(const Plan&) = default;
  /// @throws Error{invalid_argument, unsupported_shape}
  static Plan build(const ModelConfig& config, const PlanOptions& options, const DraftConfig* draft = nullptr);

  const PlanOptions& options() const { return options_; }
  const PlanShape& shape() const { return shape_; }
  uint32_t num_workers() const { return static_cast<uint32_t>(worker_begin_.size() - 1); }
  uint64_t num_tasks() const { return worker_begin_.back(); }
  std::span<const Task> tasks(uint32_t worker_idx) const;
  const std::vector<BufferInfo>& buffers() const { return buffers_; }
  const std::vector<CounterInfo>& counters() const { return counters_; }
  uint64_t arena_bytes() const { return arena_bytes_; }
  uint32_t gate_counter() const { return gate_counter_; }  ///< with all its signals of an epoch, that is over
  uint64_t hash() const;                                   ///< over shape, tasks, buffers and counters

  /// Proves, without device or weights, for every number of tokens and of active experts: no execution deadlocks; each
  /// read happens after the write it needs; nothing is overwritten while a reader is pending; no two writers race;
  /// every access is inside its buffer; no two buffers overlap; no worker runs into the next epoch early.
  /// @throws Error{plan_invalid} naming worker, task, buffer or counter.
  VerifyReport verify() const;

  std::string dump() const;  ///< one task per line

 private:
  friend class PlanBuilder;
  friend class Engine;        ///< makes its plans one by one
  friend struct PlanMutator;  ///< tests corrupt plans through this
  Plan() = default;
  PlanOptions options_;
  PlanShape shape_;
  std::vector<BufferInfo> buffers_;
  std::vector<CounterInfo> counters_;
  std::vector<uint32_t> worker_begin_;  ///< [num_workers + 1] into tasks_
  std::shared_ptr<std::vector<Task>> tasks_;
  uint64_t arena_bytes_ = 0;
  uint32_t gate_counter_ = 0;
};

}  // namespace mimo_rt

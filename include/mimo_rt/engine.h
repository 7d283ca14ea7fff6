// A loaded model, ready to run: packed weights, verified plans and an executor.
#pragma once

#include <mimo_rt/api.h>
#include <mimo_rt/config.h>
#include <mimo_rt/device.h>
#include <mimo_rt/draft.h>
#include <mimo_rt/packed_cache.h>
#include <mimo_rt/plan.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

struct EngineOptions {
  std::string device = "auto";        ///< "auto", "cpu", "ref", "cuda" or a backend name, see device.h; README.md's limits say which models cuda takes
  uint32_t num_threads = 0;           ///< workers; 0: all usable cores; cuda: all multiprocessors
  bool pin_threads = true;            ///< bind worker i to usable core i while no other process uses it; not under a CPU quota (cgroup) below the core count
  bool yield_cores = true;            ///< run with fewer workers while other processes compute and that is faster; the text stays the same
  uint32_t park_after_us = 200;       ///< idle workers spin this long, then sleep: an idle engine uses no CPU
  uint32_t timeout_ms = 10'000;       ///< a step has hung when none of its tasks finishes for this long; cuda: at most 3000 count
  uint32_t max_decode_tokens = 8;     ///< rows of a decode step; cuda: at most 8
  uint32_t prefill_chunk_tokens = 512;///< rows of a prefill step, after which a cancel is seen; cuda: at most 64
  uint32_t window_tokens = 0;         ///< overrides the width of window layers (128 or 129 keys); 0: the config's
  /// What MXFP4 matrices are multiplied with. "bf16": as the model defines it. "int8": activations are rounded to 8-bit
  /// integers, 32 with a common scale: faster where arithmetic is the limit, other logits. All else stays as it is.
  std::string activations = "bf16";
  bool exact = false;                 ///< "ref" only: float64 activations, an evaluator of the mathematical model
  /// Where drafts come from: the directory of a DFlash draft for this model; "ngram": no model, but what followed the last
  /// tokens earlier in the text; "none"; "auto": `<model_dir>/dflash` if it exists, else "ngram", but on ref (random weights:
  /// else none). cuda: blocks of at most 8 tokens; "auto" leaves out a draft with larger ones, with a note.
  std::string draft = "auto";
  /// Keeps the packed weights in files that later starts map, checked: "none", "auto" (see packed_cache.h), a directory.
  /// Not on cuda, which packs at every start.
  std::string packed_cache = "none";
  bool use_mmap = true;               ///< false: read the files into memory; they may change while they are loaded
  /// (done, total) packed bytes; returning false cancels the load.
  std::function<bool(uint64_t, uint64_t)> progress;
};

/// Loads once, serves many sessions. Thread-safe: sessions of one engine may live on different threads. Their steps run one
/// after the other; where joins_steps() says so, those that decode at the same time share steps, with the same results as
/// alone. Does not survive fork(): in the child whatever runs steps or measures throws Error{unavailable}.
class MIMO_RT_API Engine {
 public:
  /// @throws Error: invalid_argument (an option), io, bad_format, missing_tensor, shape_mismatch, unsupported_shape,
  ///         unavailable, out_of_memory, cancelled; on cuda also device_lost.
  static std::shared_ptr<Engine> open(const std::filesystem::path& model_dir, const EngineOptions& options = {});
  /// Random weights of the given shape, made in memory: for benchmarks. @throws as open()
  static std::shared_ptr<Engine> synthetic(const ModelConfig& config, uint64_t seed, const EngineOptions& options = {},
                                           const DraftConfig* draft = nullptr);
  ~Engine();

  const ModelConfig& config() const;
  const EngineOptions& options() const;
  const std::string& backend() const;        ///< the one that runs, e.g. "cpu-avx2"
  uint32_t num_workers() const;
  /// Whether sessions that decode at the same time may share steps: on all backends but "ref". With "ngram" these verify
  /// drafts of each, but for sessions with a repetition penalty, which draft while they decode alone.
  /// With a draft model (modes adaptive and off) they do where that brings more tokens than taking turns with drafts.
  bool joins_steps() const;
  const Plan& decode_plan() const;
  const Plan& prefill_plan() const;
  const DraftConfig* draft_config() const;   ///< nullptr without a draft model
  const Plan* round_plan() const;            ///< draft, verify, accept; without drafts nullptr, on a GPU blocks of one
  uint32_t max_draft_tokens() const;         ///< that a round can verify; 0 without drafts
  uint64_t draft_bytes_per_round() const;    ///< weights that drafting one block reads, the lm_head included
  uint64_t weight_bytes() const;             ///< packed
  std::vector<PackedCacheReport> packed_cache() const;  ///< one per part: target, draft; none for random weights
  uint64_t dense_bytes_per_step() const;     ///< weights every step reads: all but embedding rows and experts
  uint64_t expert_bytes() const;             ///< of one expert of one layer
  /// What costs speed, but no result, in sentences: fewer cores than workers, a core that a worker is refused, no huge
  /// pages for the weights, an option, a draft or a packed cache that this backend does not use. Empty: nothing. Looks at the
  /// process's memory map: milliseconds.
  std::vector<std::string> notes() const;
  /// Reads memory with all workers for about `seconds` and remembers the result for statistics. GB/s, 1e9 bytes. On
  /// cuda with all multiprocessors, for which 1 GiB must be free. @throws Error{out_of_memory}
  /// `poll`: called about twice a second, and may use the engine; it may throw to stop, then what was measured before
  /// stays.
  double measure_bandwidth_gbs(double seconds = 0.2, const std::function<void()>& poll = {});
  /// Runs the multiply-adds of the backend's BF16 products on all workers for about `seconds`, in registers alone: no
  /// step can do more, unless `source` says that MXFP4 products take others. Empty for the reference, for cuda and with
  /// INT8 activations. @throws Error{out_of_memory}
  std::optional<VectorPeak> measure_vector_peak(double seconds = 0.2);
  /// Task times of the next steps; `trace_json` gives the last step as a Chrome trace (predicted and measured).
  /// @throws Error{out_of_memory} on cuda, where they need memory
  void set_tracing(bool on);
  std::string trace_json() const;

  struct Impl;
  Impl& impl() { return *impl_; }            ///< for Session

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What the weights of a model, and of the draft that EngineOptions.draft = `draft` would take, need of a GPU's memory; keys
/// and values of sessions come on top. Asked of the files' headers: no GPU is needed.
/// @throws Error as Engine::open() on cuda: unsupported_shape for a model that it refuses. What it finds in the weights
/// themselves it finds when it opens.
MIMO_RT_API uint64_t cuda_weight_bytes(const std::filesystem::path& model_dir, const std::string& draft = "auto");

}  // namespace mimo_rt

// One kernel on random data of its own: how long a call takes, and whether its result is right.
#pragma once

#include <mimo_rt/api.h>
#include <mimo_rt/device.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mimo_rt {

/// What is measured. Fields that the kernel does not have stay 0.
struct KernelCase {
  /// "gemm", "attention"; edges between tasks, timed by a token that workers hand around:
  /// "edge_counter" (each signals the next), "edge_gather" (many signal, all wait); on "cuda" also
  /// "edge_same_worker", "edge_tag", "expert_gate_up", "expert_down" (up to 64 tokens),
  /// "expert_gate_up_gemm", "expert_down_gemm" (many), "expert_gate_up_fp8", "expert_down_fp8"
  /// (activations rounded to E4M3), "expert_gate_up_mxfp8", "expert_down_mxfp8" (many; to MXFP8, for
  /// sm_100 in a build with CUTLASS), "router_logits", "select_experts", "route" (both), "sample_best"
  /// (temperature 0), "sample" (temperature 1), "sample_filtered" (temperature 0.8, top-k 50, top-p 0.95),
  /// "sample_verify" (a block's drawn drafts, and how many stay), "attention_draft" (of a block that all
  /// tokens see), "rms_norm", and gemm with what goes before or after it: "gemm_normed" (a norm),
  /// "gemm_gate_up" (gated MLP), "gemm_residual", "gemm_qkv" (RoPE of a third of qk_head_dim, value
  /// scale, k and v to the cache; rows follow from the heads), "gemm_best" (logits of up to 16 tokens, and the
  /// next token at temperature 0)
  std::string kernel;
  /// Of the weights: "mxfp4", "fp8_e4m3", "bf16", "f32"; of keys and values: "bf16"; of logits:
  /// "f32"; of edges: "u32".
  std::string format;
  uint32_t num_tokens = 1;
  uint32_t rows = 0, k = 0;                           ///< gemm
  uint32_t num_experts = 0, experts_per_token = 0;    ///< experts, router
  uint32_t hidden_size = 0, width = 0;                ///< experts, router_logits, rms_norm
  uint32_t num_segments = 1;                          ///< expert_down…: parts of K, 8 / number of ranks
  uint32_t num_kv_heads = 0, num_q_per_kv = 0;        ///< attention
  uint32_t qk_head_dim = 0, v_head_dim = 0;
  uint32_t num_keys = 0;       ///< that the first token sees
  /// On "cuda". num_keys: the cache is a ring, every token sees as many keys; 0: it is pages.
  uint32_t window_tokens = 0;
  uint32_t split_keys = 0;     ///< on "cuda": keys that one block goes through, a multiple of 64
  uint32_t vocab_size = 0;     ///< sampling
  // Edges. 0 workers: all multiprocessors or usable cores; 0 hops: some thousands; 0 signallers: all
  // workers for edge_gather, else 1.
  uint32_t num_workers = 0, num_hops = 0, num_signallers = 0;
};

struct KernelBenchOptions {
  std::string backend = "cpu";  ///< a CPU backend of `list_backends`, or "cuda"
  /// Bytes that the calls walk through, so that each finds its data outside the caches. 0: four
  /// times the last-level cache and at least 256 MiB.
  uint64_t rotation_bytes = 0;
  bool is_hot = false;  ///< CPU gemm only: every call reads the same few rows, from the caches
  /// "int8": as `EngineOptions::activations`; CPU gemm of mxfp4 only.
  std::string activations = "bf16";
  uint64_t seed = 0;
};

/// What one call has to do. A matrix or a layer whose call would take much longer than 10 ms on a
/// CPU core is measured in part: `rows` and `num_kv_heads` of `KernelBench::measured` say which.
struct KernelWork {
  double bytes = 0;       ///< weights, keys and values, or logits, read once
  double flops = 0;       ///< 2 per multiply-add
  double read_bytes = 0;  ///< of the plain read that every call takes turns with
  uint32_t num_active_experts = 0;
  uint32_t num_hops = 0;  ///< of an edge that are timed; 0: no edge
};

struct KernelTimes {
  std::vector<double> call_s;  ///< one call
  std::vector<double> read_s;  ///< one plain read, just before it; empty for edges on a CPU
  /// On "cuda": one kernel that does nothing, just behind it. No call is faster, one of two launches takes longer.
  std::vector<double> floor_s;
};

/// Owns all buffers; nothing is allocated between two calls. One thread at a time. A CPU kernel runs
/// on the caller's thread, an edge on pinned threads of its own.
class MIMO_RT_API KernelBench {
 public:
  /// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field; Error{unavailable}
  ///         when the backend is not there or has no such kernel; Error{out_of_memory}
  static KernelBench open(const KernelCase& kernel_case, const KernelBenchOptions& options);
  KernelBench(KernelBench&&) noexcept;
  ~KernelBench();

  const KernelCase& measured() const noexcept;  ///< the case, cut to what a call does
  const KernelWork& work() const noexcept;
  const std::string& backend() const noexcept;
  const std::string& device() const noexcept;  ///< name of the GPU; empty for a CPU backend

  /// Runs the kernel and compares a sample of its results with float64: the largest error over the
  /// bound that follows from the arithmetic. Above 1 the result is wrong; infinity for a NaN.
  double worst_error();
  /// Root mean square of the errors that `worst_error` has seen last, over that of the values. 0 before,
  /// on a CPU, and where the result is a choice.
  double relative_error() const noexcept;
  /// Times of `num_calls` calls, each after a plain read of other memory. The first ones warm up
  /// whatever they find cold besides the data.
  KernelTimes run(uint32_t num_calls);
  /// Runs the multiply-adds of a CPU kernel in registers alone for some milliseconds: it can do no more. Empty for edges
  /// and on "cuda".
  std::optional<VectorPeak> measure_peak();

 private:
  struct Impl;
  explicit KernelBench(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt

// What pieces of a step cost on a machine: measured once, kept in a file, used by every engine that opens later.
#pragma once

#include <mimo_rt/api.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace mimo_rt {

/// Times of one worker while all workers of the engine do the same, in nanoseconds. All 0: nothing was measured, and
/// plans go by rules of thumb.
struct CostTable {
  static constexpr std::array<uint32_t, 6> kTokens = {1, 2, 4, 8, 16, 64};
  static constexpr std::array<const char*, 4> kFormats = {"mxfp4", "fp8_e4m3", "bf16", "f32"};

  /// [format][i]: per 1024 weights, read from memory and multiplied with kTokens[i] tokens.
  std::array<std::array<double, kTokens.size()>, kFormats.size()> matrix_ns{};
  double attention_ns = 0.0;    ///< per 1024 multiply-adds of attention over keys and values in memory
  double norm_ns = 0.0;         ///< RMSNorm of 1024 elements
  double prepare_ns = 0.0;      ///< reordering 1024 activations for an MXFP4 product; a GPU takes them as they are: 0
  double edge_ns = 0.0;         ///< from the last signal of two workers until both go on; one worker: 0
  double edge_worker_ns = 0.0;  ///< what each worker more that signals adds to that, all workers waiting

  bool is_measured() const { return matrix_ns[0][0] > 0.0; }
  /// Finite times from 0 to a second, none of a matrix falling as tokens are added.
  bool is_sound() const;
  bool operator==(const CostTable&) const = default;
};

/// Whose costs a table holds. `cost_key` fills in what this machine has; of a GPU that has no defaults.
struct CostKey {
  std::string backend;              ///< a CPU backend of `list_backends`, e.g. "cpu-avx2", or "cuda"
  uint32_t num_workers = 0;         ///< 0: all usable cores; "cuda": 1 or more, for measuring all multiprocessors
  std::string activations = "bf16"; ///< see EngineOptions
  std::string kernel_set = {};      ///< which of its kernels the backend stands for, where it has several
  std::string processor = {};       ///< name of the CPU or GPU; empty: this machine's CPU; "cuda": never empty
};

/// The key of an engine that opens here. `device` and `activations`: as in EngineOptions; `num_workers` 0: all usable
/// cores, or the multiprocessors of the GPU.
/// @throws Error{invalid_argument, unavailable} as resolve_backend
MIMO_RT_API CostKey cost_key(std::string_view device, uint32_t num_workers = 0,
                             const std::string& activations = "bf16");

/// Runs the backend's kernels. On a CPU on as many threads as the engine has workers: some ten seconds; memory of four
/// times the last-level cache or 256 MB, and 8 MB per worker. On "cuda" on all multiprocessors: some ten seconds, most
/// of them to pack weights; 2 GB of the GPU's memory, which has to be the one that the key names.
/// `progress`: called with 0 .. 1 now and then; it may throw to stop.
/// @throws Error{invalid_argument, unavailable, out_of_memory}; on "cuda" also Error{device_lost, timeout}
MIMO_RT_API CostTable measure_costs(const CostKey& key, const std::function<void(double)>& progress = {});

/// Where the table lies: in `cache_directory()`, each GPU's in a file of its own.
/// @throws Error{invalid_argument} for a key of "cuda" without processor or workers, as the two below
MIMO_RT_API std::filesystem::path cost_table_path(const CostKey& key);
/// @throws Error{io}
MIMO_RT_API void save_cost_table(const CostKey& key, const CostTable& table);
/// The saved table; nothing when there is none or when it is of another version of the library.
/// @throws Error{unavailable} for one of another processor, Error{bad_format} for a file that is not such a table
MIMO_RT_API std::optional<CostTable> load_cost_table(const CostKey& key);

}  // namespace mimo_rt

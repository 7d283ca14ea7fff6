// What `KernelBench` runs: one kernel with its data.
#pragma once

#include <memory>
#include <string>

#include "core/checks.h"
#include "weights/packed.h"

#include <mimo_rt/kernel_bench.h>

namespace mimo_rt::kbench {

inline constexpr const char* kWhere = "KernelBench.open";

// A CPU call beyond these is cut: about 10 ms of one core.
inline constexpr double kCallFlops = 4e8;
inline constexpr uint64_t kCallBytes = uint64_t{64} << 20;
inline constexpr uint64_t kReadBytes = uint64_t{16} << 20;  ///< of a plain read

class Subject {
 public:
  virtual ~Subject() = default;
  virtual double worst_error() = 0;
  virtual KernelTimes run(uint32_t num_calls) = 0;
  virtual std::optional<VectorPeak> measure_peak() { return std::nullopt; }

  const KernelCase& measured() const { return measured_; }
  const KernelWork& work() const { return work_; }
  double relative_error() const { return relative_error_; }

 protected:
  explicit Subject(const KernelCase& kernel_case) : measured_(kernel_case) {}

  KernelCase measured_;
  KernelWork work_;
  double relative_error_ = 0;  ///< of the last place that `worst_error` looked at
};

/// @throws Error{invalid_argument} when a field that the kernel needs is 0
inline void check_positive(const char* name, uint32_t value) {
  MIMO_RT_CHECK(value != 0, invalid_argument, kWhere, name, ": expected > 0, got 0");
}

/// @throws Error{unsupported_shape}
inline void check_multiple(const char* name, uint32_t value, uint32_t step) {
  check_positive(name, value);
  MIMO_RT_CHECK(value % step == 0, unsupported_shape, kWhere, name, ": expected a multiple of ",
                step, ", got ", value);
}

/// @throws Error{capacity}
inline void check_at_most(const char* name, uint32_t value, uint32_t limit) {
  MIMO_RT_CHECK(value <= limit, capacity, kWhere, name, ": expected at most ", limit, ", got ",
                value);
}

/// A size of a model, as Plan.build takes it: products of two fit into 32 bits.
inline void check_dim(const char* name, uint32_t value) {
  check_positive(name, value);
  check_at_most(name, value, 65535);
}

/// The fields that attention has on every backend.
inline void check_attention_case(const KernelCase& kernel_case) {
  check_positive("num_tokens", kernel_case.num_tokens);
  check_dim("num_kv_heads", kernel_case.num_kv_heads);
  check_dim("num_q_per_kv", kernel_case.num_q_per_kv);
  check_dim("qk_head_dim", kernel_case.qk_head_dim);
  check_dim("v_head_dim", kernel_case.v_head_dim);
  check_positive("num_keys", kernel_case.num_keys);
}

/// The fields of a gemm.
inline void check_matrix(const KernelCase& kernel_case) {
  check_positive("num_tokens", kernel_case.num_tokens);
  check_multiple("rows", kernel_case.rows, kTileRows);
  check_multiple("k", kernel_case.k, kBlockK);
}

}  // namespace mimo_rt::kbench

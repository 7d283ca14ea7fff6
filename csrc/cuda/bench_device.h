// What a benchmark needs of a GPU. bench_device.cu has the real one; tests give one that runs the
// kernels' own source under emulation.
#pragma once

#include <mimo_rt/kernel_bench.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "cuda/attention_params.h"
#include "cuda/device_memory.h"
#include "cuda/edge_relay_params.h"
#include "cuda/expert_gemm_params.h"
#include "cuda/expert_mlp_params.h"
#include "cuda/expert_mxfp8_params.h"
#include "cuda/projection_params.h"
#include "cuda/router_params.h"
#include "cuda/sampling_params.h"

namespace mimo_rt::cuda {

class BenchDevice : public DeviceMemory {
 public:
  /// What a plain read goes through: several times the L2 cache, which it leaves without anything
  /// of the kernel that follows.
  virtual uint64_t read_bytes() const = 0;
  virtual uint32_t num_multiprocessors() const = 0;

  virtual void launch(const ExpertGateUpParams& params) = 0;
  virtual void launch(const ExpertDownParams& params) = 0;
  virtual void launch(const ExpertGateUpFp8Params& params) = 0;
  virtual void launch(const ExpertDownFp8Params& params) = 0;
  virtual void launch(const ExpertGateUpGemmParams& params) = 0;
  virtual void launch(const ExpertDownGemmParams& params) = 0;
  virtual void launch(const ExpertGateUpMxfp8Params& params) = 0;
  virtual void launch(const ExpertDownMxfp8Params& params) = 0;
  virtual void launch(const ProjectionParams& params) = 0;
  virtual void launch(const RmsNormParams& params) = 0;
  virtual void launch(const AttentionParams& params) = 0;
  virtual void launch(const RouterLogitsParams& params) = 0;
  virtual void launch(const SelectExpertsParams& params) = 0;
  virtual void launch(const SampleParams& params) = 0;
  virtual void launch(const SampleRowsParams& params) = 0;
  virtual void launch(const AcceptParams& params) = 0;
  virtual void launch(const EdgeRelayParams& params, uint32_t num_blocks) = 0;

  /// Before memory is filled for the kernels with MXFP8 activations, which few devices have.
  /// @throws Error{unavailable}
  virtual void check_mxfp8() const = 0;

  /// For i = 0 .. num_calls - 1: a plain read, then `call(i)`, which launches, then an empty kernel; all timed on the
  /// device. @throws Error{device_lost}
  virtual KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>& call) = 0;
};

/// The first visible GPU, whichever is current.
/// @throws Error{unavailable} when this build or this machine has none
std::unique_ptr<BenchDevice> open_bench_device();

}  // namespace mimo_rt::cuda

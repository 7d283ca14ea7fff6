// Runs the projection kernels: under the emulated GPU, or (MIMO_RT_TEST_ON_GPU) on a real one.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/projection_kernels.cuh"
#include "emulation/schedule.h"
#endif

#include "check.h"
#include "cuda/projection.h"
#include "projection_fixture.h"

namespace fixture {

using cuda::ProjectionParams;
using cuda::ProjectionStore;

struct Launch {
  uint32_t num_blocks = 2;
  uint64_t seed = 0;
};

#if defined(MIMO_RT_TEST_ON_GPU)
inline void finish() {
  const cudaError_t status = cudaDeviceSynchronize();
  if (status != cudaSuccess) check::report(__FILE__, __LINE__, cudaGetErrorString(status));
  CHECK(status == cudaSuccess);
}
inline void run(const ProjectionParams& params, const Launch& launch) {
  cuda::launch_projection(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::RmsNormParams& params, const Launch& launch) {
  cuda::launch_rms_norm(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::ArgmaxCombineParams& params, const Launch&) {
  cuda::launch_argmax_combine(params);
  finish();
}
#else
template <typename Params>
void run_emulated(void (*kernel)(Params), const Params& params, const Launch& launch,
                  uint32_t num_threads = cuda::kBlockThreads) {
  emulation::LaunchOptions options;
  options.num_blocks = launch.num_blocks;
  options.num_threads = num_threads;
  options.shared_bytes = sizeof(cuda::ProjectionShared);
  options.seed = launch.seed;
  const emulation::LaunchResult result = emulation::launch(options, kernel, params);
  if (!result.error.empty()) check::report(__FILE__, __LINE__, result.error);
  CHECK(result.error.empty());
}
inline void run(const ProjectionParams& params, const Launch& launch) {
  cuda::check_projection(params);
  run_emulated(cuda::projection_kernel(params), params, launch);
}
inline void run(const cuda::RmsNormParams& params, const Launch& launch) {
  cuda::check_rms_norm(params);
  run_emulated(cuda::rms_norm_kernel, params, launch, cuda::kComputeWarps * 32);
}
inline void run(const cuda::ArgmaxCombineParams& params, const Launch& launch) {
  cuda::check_argmax_combine(params);
  run_emulated(cuda::argmax_combine_kernel, params, {.num_blocks = 1, .seed = launch.seed});
}
#endif

inline constexpr bf16_t kUntouched = 0x7fc1;  // a NaN
// Unit roundoff of one step of a tensor-core sum. Hardware truncates instead of rounding: 2^-23.
inline constexpr double kSumUnit = 0x1p-23, kFloatUnit = 0x1p-24, kBf16Unit = 0x1p-8;

/// y[num_tokens, num_columns] of `params`, with the f32 store; columns beyond must stay.
inline std::vector<float> project(ProjectionParams params, const Launch& launch = {}) {
  AlignedRows<float> out(params.num_tokens + 1, (params.num_columns + 7) / 4 * 4, -77.0f);
  params.store = ProjectionStore::f32;
  params.out_f32 = {out.data, out.stride};
  run(params, launch);
  std::vector<float> y;
  for (uint32_t t = 0; t <= params.num_tokens; ++t)
    for (uint32_t i = 0; i < out.stride; ++i) {
      if (t < params.num_tokens && i < params.num_columns)
        y.push_back(out.at(t, i));
      else
        CHECK_EQ(out.at(t, i), -77.0f);
    }
  return y;
}

}  // namespace fixture

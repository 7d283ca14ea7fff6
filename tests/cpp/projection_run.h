// Runs the projection kernels: under the emulated GPU, or (MIMO_RT_TEST_ON_GPU) on a real one.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/projection_kernels.cuh"
#endif

#include "cuda/projection.h"
#include "kernel_launch.h"
#include "projection_fixture.h"

namespace fixture {

using cuda::ProjectionParams;
using cuda::ProjectionStore;

#if defined(MIMO_RT_TEST_ON_GPU)
inline void run(const ProjectionParams& params, const Launch& launch) {
  cuda::launch_projection(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::RmsNormParams& params, const Launch& launch) {
  cuda::launch_rms_norm(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
inline emulation::LaunchOptions projection_options(const Launch& launch, uint32_t num_threads) {
  return options_of(launch, num_threads, sizeof(cuda::ProjectionShared));
}
inline void run(const ProjectionParams& params, const Launch& launch) {
  cuda::check_projection(params);
  run_emulated(cuda::projection_kernel(params), params,
               projection_options(launch, cuda::kBlockThreads));
}
inline void run(const cuda::RmsNormParams& params, const Launch& launch) {
  cuda::check_rms_norm(params);
  run_emulated(cuda::rms_norm_kernel, params,
               projection_options(launch, cuda::kComputeWarps * 32));
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

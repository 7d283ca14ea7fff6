// Host API of the expert kernels for many tokens.
#pragma once

#include "cuda/expert_gemm_params.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_expert_gate_up_gemm(const ExpertGateUpGemmParams& params);
void check_expert_down_gemm(const ExpertDownGemmParams& params);

/// Checks, then launches two kernels (gate_up) or three (down) on the current device, one after the
/// other, and returns at once. All pointers are to its memory. Every token gets the bits that
/// launch_expert_gate_up and launch_expert_down give it, provided that wgmma adds 16 products as
/// mma.sync does: native_cuda_expert_gemm.cpp finds out on the device.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_expert_gate_up_gemm(const ExpertGateUpGemmParams& params,
                                const LaunchOptions& options = {});
void launch_expert_down_gemm(const ExpertDownGemmParams& params, const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda

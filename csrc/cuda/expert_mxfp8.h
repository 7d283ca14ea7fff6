// Host API of the expert kernels for many tokens with MXFP8 activations, an option that changes
// results. For sm_100 devices, in builds with MIMO_RT_CUTLASS=ON.
#pragma once

#include "cuda/expert_mxfp8_params.h"
#include "cuda/gemm/block_scaled.h"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

/// What can be said before a launch: sizes, strides, alignment, missing pointers.
/// @throws Error{invalid_argument, unsupported_shape, capacity} that names the field
void check_expert_gate_up_mxfp8(const ExpertGateUpMxfp8Params& params);
void check_expert_down_mxfp8(const ExpertDownMxfp8Params& params);

/// The products of a call.
BlockScaledGemm gate_up_products(const ExpertGateUpMxfp8Params& params);
BlockScaledGemm down_products(const ExpertDownMxfp8Params& params);

/// Checks, then launches four kernels on the current device, one after the other, and returns at
/// once. All pointers are to its memory.
/// @throws as the checks; Error{unavailable} for a device that the kernels were not built for;
///         Error{device_lost} when CUDA refuses, with call, kernel and shapes
void launch_expert_gate_up_mxfp8(const ExpertGateUpMxfp8Params& params,
                                 const LaunchOptions& options = {});
void launch_expert_down_mxfp8(const ExpertDownMxfp8Params& params,
                              const LaunchOptions& options = {});

}  // namespace mimo_rt::cuda

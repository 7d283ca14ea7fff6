// What the expert kernels for many tokens with MXFP8 activations are given. For g++ and nvcc.
//
// They compute what expert_mlp_params.h says, with activations rounded to MXFP8: an option of its
// own, for sm_100a, whose matrix instructions take MXFP4 weights beside these alone. 32 neighbours
// of a row share a scale, the smallest power of two (2^-126 and up) with which none is above 448;
// each becomes the nearest E4M3. An activation is off by 2^-4 of itself at most, or by 2^-10 of the
// scale where it is below 2^-6 of it; weights stay exact, whatever their scales. Blocks with an
// infinity or a NaN become NaN.
//
// Sums are FP32, in an order of the hardware's: results are not those of expert_gemm_params.h, and
// whether a token's bits depend on the tokens beside it is for a device to say
// (native_cuda_expert_mxfp8.cpp asks). Down adds up a token's experts in ascending order.
//
// Each call is several kernels: round (activations of all slots), list and multiply
// (gemm/block_scaled.h), then swiglu (gate_up) or combine (down).
#pragma once

#include <cstdint>

#include "cuda/expert_gemm_params.h"
#include "weights/cuda_mx.h"

namespace mimo_rt::cuda {

/// Where the rounded activations of a call lie in `packed`: codes, then scales.
struct Mxfp8Slots {
  uint8_t* codes;   ///< E4M3 [max_slots, padded_k]
  uint8_t* scales;  ///< E8M0, atoms of cuda_mx.h; the rows of an expert begin at cuda_mx_scale_row
  uint32_t padded_k;

  MIMO_RT_HOST_DEVICE Mxfp8Slots(uint8_t* packed, uint32_t max_slots, uint32_t k)
      : codes(packed),
        scales(packed + uint64_t{max_slots} * cuda_mx_padded_k(k)),
        padded_k(cuda_mx_padded_k(k)) {}
};

/// Room for them.
inline uint64_t mxfp8_slots_bytes(uint32_t max_slots, uint32_t num_experts, uint32_t k) {
  const uint32_t num_active = num_experts < max_slots ? num_experts : max_slots;
  const uint32_t padded_k = cuda_mx_padded_k(k);
  return uint64_t{max_slots} * padded_k +
         cuda_mx_scale_bytes(cuda_mx_scale_row(max_slots, num_active), padded_k);
}

/// `tiles` as cuda_mx.h has them. It and what the call writes are multiples of 128.
struct ExpertGateUpMxfp8Params : ExpertGateUpGemmParams {  ///< packed: [mxfp8_slots_bytes]
  float* products = nullptr;                               ///< [max_slots, 2 * width]
  uint8_t* workspace = nullptr;  ///< [block_scaled_workspace_bytes(num_experts)]
};

/// num_segments: 1.
struct ExpertDownMxfp8Params : ExpertDownGemmParams {  ///< packed: [mxfp8_slots_bytes]
  uint8_t* workspace = nullptr;  ///< [block_scaled_workspace_bytes(num_experts)]
};

}  // namespace mimo_rt::cuda

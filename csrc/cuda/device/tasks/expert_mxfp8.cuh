// What surrounds the products with MXFP8 activations (gemm/block_scaled.h): slots are rounded and
// laid out as tcgen05 reads them, gate and up become act.
#pragma once

#include "cuda/device/math/silu.cuh"
#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/expert_mxfp8_params.h"

namespace mimo_rt::cuda {

/// The active expert that a slot belongs to.
__device__ inline uint32_t active_idx_of(const RouteTable& route, uint32_t num_active,
                                         uint32_t slot) {
  uint32_t begin = 0, end = num_active;  // slot_begin[begin] <= slot < slot_begin[end]
  while (end - begin > 1) {
    const uint32_t middle = (begin + end) / 2;
    if (route.slot_begin[middle] <= slot)
      begin = middle;
    else
      end = middle;
  }
  return begin;
}

__device__ __forceinline__ uint32_t larger_of(uint32_t a, uint32_t b) { return a < b ? b : a; }

/// E8M0 of a block whose largest magnitude has the BF16 bits `largest`: of the smallest power of
/// two, 2^-126 and up, with which it is at most 448 = 1.75 * 2^8; NaN when it is not finite.
__device__ __forceinline__ uint32_t mx_scale_of(uint32_t largest) {
  constexpr uint32_t kNotFinite = 255, kBeyond448 = 0x60, kMaxExponent = 8;
  const uint32_t exponent = largest >> 7;
  if (exponent == kNotFinite) return 255;
  const uint32_t raised = exponent + ((largest & 0x7f) > kBeyond448 ? 1 : 0);
  return raised > kMaxExponent ? raised - kMaxExponent : 1;
}

/// One warp: a row of `k` BF16 values as codes and as row `scale_row` of scales. Four lanes share a
/// block. k beyond the row's count as 0.
__device__ inline void round_slot(const uint16_t* row, uint32_t k, const Mxfp8Slots& out,
                                  uint32_t slot, uint32_t scale_row) {
  const uint32_t lane_idx = threadIdx.x % 32;
  uint8_t* codes = out.codes + uint64_t{slot} * out.padded_k;
  for (uint32_t begin = 0; begin < out.padded_k; begin += 256) {
    const uint32_t i = begin + 8 * lane_idx;
    ptx::Words4 words{};
    if (i < k) words = ptx::load_16_bytes_keep(row + i);
    uint32_t largest = 0;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      largest = larger_of(largest, words.word[j] & 0x7fff);
      largest = larger_of(largest, words.word[j] >> 16 & 0x7fff);
    }
#pragma unroll
    for (uint32_t mask = 1; mask < 4; mask *= 2)
      largest = larger_of(largest, ptx::shuffle_xor(largest, mask));
    const uint32_t scale = mx_scale_of(largest);
    // 1 / scale. A block that is not finite gets a NaN for it.
    const float factor = ptx::as_float(scale == 255 ? 0x7fc00000u : (254 - scale) << 23);
    if (i >= out.padded_k) continue;  // no lane of its block has another mind
    uint32_t pairs[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
      pairs[j] = ptx::to_e4m3x2(ptx::low_bf16(words.word[j]) * factor,
                                ptx::high_bf16(words.word[j]) * factor);
    auto* two_words = reinterpret_cast<uint32_t*>(codes + i);
    two_words[0] = pairs[0] | pairs[1] << 16;
    two_words[1] = pairs[2] | pairs[3] << 16;
    if (lane_idx % 4 == 0)
      out.scales[cuda_mx_scale_offset(scale_row, i / kCudaMxBlock, out.padded_k)] =
          static_cast<uint8_t>(scale);
  }
}

/// All warps of blocks of compute warps: the rows `row_of(slot)` of all slots. Scales of rows beyond
/// an expert's slots stay what they were: they only ever meet columns that nobody stores.
template <typename Params, typename RowOf>
__device__ void round_slots(const Params& p, uint32_t k, const RowOf& row_of) {
  const uint32_t num_active = *p.route.num_active;
  const uint32_t num_slots = num_active > p.num_experts ? ~0u : p.route.slot_begin[num_active];
  if (num_slots > p.max_slots) ptx::trap();  // a broken route; the host has checked sizes
  const Mxfp8Slots out(p.packed, p.max_slots, k);
  const uint32_t stride = gridDim.x * kComputeWarps;
  for (uint32_t slot = blockIdx.x * kComputeWarps + threadIdx.x / 32; slot < num_slots;
       slot += stride) {
    const uint32_t active_idx = active_idx_of(p.route, num_active, slot);
    const uint32_t begin = p.route.slot_begin[active_idx];
    round_slot(row_of(slot), k, out, slot, cuda_mx_scale_row(begin, active_idx) + slot - begin);
  }
}

/// All threads: act = silu(gate) * up, 8 columns of a slot at a time.
__device__ inline void multiply_gates(const ExpertGateUpMxfp8Params& p) {
  const uint32_t num_slots = p.route.slot_begin[*p.route.num_active];
  for (uint32_t slot = blockIdx.x; slot < num_slots; slot += gridDim.x) {
    const float* gates = p.products + uint64_t{slot} * 2 * p.width;
    for (uint32_t column = 8 * threadIdx.x; column < p.width;
         column += 8 * kComputeWarps * 32) {
      ptx::Words4 act;
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t first = column + 4 * half;
        const ptx::Words4 gate = ptx::load_16_bytes_once(gates + first);
        const ptx::Words4 up = ptx::load_16_bytes_once(gates + p.width + first);
        float values[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j)
          values[j] = silu(ptx::as_float(gate.word[j])) * ptx::as_float(up.word[j]);
        act.word[2 * half] = ptx::to_bf16x2(values[0], values[1]);
        act.word[2 * half + 1] = ptx::to_bf16x2(values[2], values[3]);
      }
      *reinterpret_cast<ptx::Words4*>(p.act.row(slot) + column) = act;
    }
  }
}

}  // namespace mimo_rt::cuda

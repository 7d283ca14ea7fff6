// Runs the expert kernels with MXFP8 activations: those of this project under the emulated GPU, with
// a float64 model of CUTLASS's products between them; or (MIMO_RT_TEST_ON_GPU) all of them on a real
// one. And says what their results may be off by.
#pragma once

#include "expert_run.h"
#include "host_block_scaled.h"

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "cuda/device/tasks/expert_mxfp8_kernels.cuh"
#endif
#include "cuda/expert_mxfp8.h"
#include "weights/pack_cuda_mx.h"

namespace fixture {

/// Memory at a multiple of 128, which is not to be written beyond its end.
template <typename T>
class GuardedMemory {
 public:
  GuardedMemory(uint64_t count, uint8_t fill) : size_(count * sizeof(T)), fill_(fill) {
    bytes_.assign(size_ + kMargin + 128, fill);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() {
    for (uint64_t i = 0; i < kMargin; ++i) CHECK_EQ(bytes()[size_ + i], fill_);
  }
  T* data() { return reinterpret_cast<T*>(bytes()); }

 private:
  static constexpr uint64_t kMargin = 64;
  uint8_t* bytes() {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(bytes_.data()) + 127) / 128 *
                                      128);
  }
  KernelVector<uint8_t> bytes_;
  const uint64_t size_;
  const uint8_t fill_;
};

/// The experts of a layer as cuda_mx.h has them.
struct MxExperts {
  CudaMxShape gate_up_shape, down_shape;
  GuardedMemory<uint8_t> gate_up, down;

  explicit MxExperts(const Experts& experts)
      : gate_up_shape(cuda_mx_gate_up_shape(experts.gate[0]->source, experts.up[0]->source)),
        down_shape(cuda_mx_down_shape(experts.down[0]->source, all(experts))),
        gate_up(gate_up_shape.bytes() * experts.shape.num_experts, 0xff),
        down(down_shape.bytes() * experts.shape.num_experts, 0xff) {
    for (uint32_t e = 0; e < experts.shape.num_experts; ++e) {
      pack_cuda_mx_gate_up(experts.gate[e]->source, experts.up[e]->source,
                           gate_up.data() + e * gate_up_shape.bytes());
      pack_cuda_mx_down(experts.down[e]->source, all(experts),
                        down.data() + e * down_shape.bytes());
    }
  }

 private:
  static ColumnSlice all(const Experts& experts) {
    return ColumnSlice::all(experts.down[0]->source);
  }
};

#if defined(MIMO_RT_TEST_ON_GPU)
inline void run(const cuda::ExpertGateUpMxfp8Params& params, const Launch& launch) {
  cuda::launch_expert_gate_up_mxfp8(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::ExpertDownMxfp8Params& params, const Launch& launch) {
  cuda::launch_expert_down_mxfp8(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
inline emulation::LaunchOptions mxfp8_options(const Launch& launch) {
  return options_of(launch, cuda::kComputeWarps * 32, sizeof(cuda::CombineShared));
}
inline void run(const cuda::ExpertGateUpMxfp8Params& params, const Launch& launch) {
  cuda::check_expert_gate_up_mxfp8(params);
  run_emulated(cuda::expert_round_x_mxfp8_kernel, params, mxfp8_options(launch));
  multiply_on_host(cuda::gate_up_products(params));
  run_emulated(cuda::expert_swiglu_kernel, params, mxfp8_options(launch));
}
inline void run(const cuda::ExpertDownMxfp8Params& params, const Launch& launch) {
  cuda::check_expert_down_mxfp8(params);
  run_emulated(cuda::expert_round_act_mxfp8_kernel, params, mxfp8_options(launch));
  multiply_on_host(cuda::down_products(params));
  run_emulated(cuda::expert_combine_mxfp8_kernel, params, mxfp8_options(launch));
}
#endif

/// What a call needs besides its operands. NaN: what is not written is not used.
struct MxScratch {
  GuardedMemory<uint8_t> packed, workspace;
  GuardedMemory<float> products;

  MxScratch(uint32_t max_slots, uint32_t num_experts, uint32_t k, uint32_t rows)
      : packed(cuda::mxfp8_slots_bytes(max_slots, num_experts, k), 0xff),
        workspace(cuda::block_scaled_workspace_bytes(num_experts), 0xff),
        products(uint64_t{std::max(max_slots, 1u)} * rows, 0xff) {}
};

inline std::vector<bf16_t> gate_up_mxfp8(Experts& experts, MxExperts& packed, Route& route,
                                         const AlignedRows<bf16_t>& x, const Launch& launch = {}) {
  const uint32_t num_experts = experts.shape.num_experts;
  return run_gate_up(experts, route, x, [&](const cuda::ExpertGateUpParams& params) {
    MxScratch scratch(params.max_slots, num_experts, params.hidden_size, 2 * params.width);
    cuda::ExpertGateUpMxfp8Params call{{params, scratch.packed.data(), num_experts},
                                       scratch.products.data(),
                                       scratch.workspace.data()};
    call.tiles = packed.gate_up.data();
    run(call, launch);
  });
}

inline std::vector<float> down_mxfp8(Experts& experts, MxExperts& packed, Route& route,
                                     const AlignedRows<bf16_t>& act, const Launch& launch = {}) {
  const uint32_t num_experts = experts.shape.num_experts;
  return run_down(experts, route, act, 1, [&](const cuda::ExpertDownParams& params) {
    MxScratch scratch(params.max_slots, num_experts, params.width, params.hidden_size);
    cuda::ExpertDownMxfp8Params call{
        {params, scratch.packed.data(), scratch.products.data(), num_experts},
        scratch.workspace.data()};
    call.tiles = packed.down.data();
    run(call, launch);
  });
}

/// 2^e, the smallest with which a block's largest magnitude is at most 448; e >= -126.
inline double scale_of_block(const bf16_t* x, uint32_t count) {
  double largest = 0, scale = 0x1p-126;
  for (uint32_t k = 0; k < count; ++k)
    largest = std::max(largest, std::abs(double{bf16_to_f32(x[k])}));
  while (largest > 448 * scale) scale *= 2;
  return scale;
}

/// The exact product, its magnitude, and what rounding the activations to MXFP8 may change: 2^-4 of
/// each, or half a step of the smallest codes. Sums are FP32, k of them.
struct MxProduct {
  Product exact;
  double error = 0;

  MxProduct(const StoredMatrix& matrix, uint32_t row, const bf16_t* x)
      : exact(dot(matrix, row, x)) {
    for (uint32_t begin = 0; begin < matrix.source.k; begin += 32) {
      const double scale = scale_of_block(x + begin, 32);
      for (uint32_t k = begin; k < begin + 32; ++k)
        error += std::abs(Experts::value(matrix, row, k)) *
                 std::max(0x1p-4 * std::abs(double{bf16_to_f32(x[k])}), 0x1p-10 * scale);
    }
    error += gamma(matrix.source.k + 2.0, kSumUnit) * (exact.magnitude + error);
  }
};

}  // namespace fixture

// A GPU for the kernel benchmarks: the kernels' own source under emulation, ordinary memory, and a clock that counts the
// scheduler's rounds and, in them, the turns of lanes.
#pragma once

#define MIMO_RT_HOST_EMULATION
#include "cuda/bench_device.h"
#include "cuda/attention.h"
#include "cuda/device/tasks/attention_kernels.cuh"
#include "cuda/device/tasks/edge_relay.cuh"
#include "cuda/device/tasks/expert_fp8_kernels.cuh"
#include "cuda/device/tasks/expert_gemm_kernels.cuh"
#include "cuda/device/tasks/expert_kernels.cuh"
#include "cuda/device/tasks/expert_mxfp8_kernels.cuh"
#include "cuda/device/tasks/projection_kernels.cuh"
#include "cuda/device/tasks/router_kernels.cuh"
#include "cuda/device/tasks/sampling_kernels.cuh"
#include "cuda/edge_relay.h"
#include "cuda/expert_fp8.h"
#include "cuda/expert_gemm.h"
#include "cuda/expert_mlp.h"
#include "cuda/expert_mxfp8.h"
#include "cuda/projection.h"
#include "cuda/router.h"
#include "cuda/sampling.h"

#include <vector>

#include "host_block_scaled.h"
#include "host_device_memory.h"
#include "kernel_launch.h"

namespace fixture {

using namespace mimo_rt;

class EmulatedBenchDevice : public HostDeviceMemory<cuda::BenchDevice> {
 public:
  uint64_t read_bytes() const override { return 1000; }
  uint32_t num_multiprocessors() const override { return kMultiprocessors; }
  void check_mxfp8() const override {}

  void launch(const cuda::ExpertGateUpParams& params) override {
    cuda::check_expert_gate_up(params);
    tiles.push_back(params.tiles);
    active.push_back({params.route.active_experts,
                      params.route.active_experts + *params.route.num_active});
    run(cuda::expert_gate_up_kernel, params, sizeof(cuda::ExpertShared));
  }
  void launch(const cuda::ExpertDownParams& params) override {
    cuda::check_expert_down(params);
    run(cuda::expert_down_kernel, params, sizeof(cuda::ExpertShared));
  }
  void launch(const cuda::ExpertGateUpFp8Params& params) override {
    cuda::check_expert_gate_up_fp8(params);
    run(cuda::expert_round_x_kernel, params, 0, kComputeThreads);
    run(cuda::expert_gate_up_fp8_kernel, params, sizeof(cuda::ExpertShared));
  }
  void launch(const cuda::ExpertDownFp8Params& params) override {
    cuda::check_expert_down_fp8(params);
    run(cuda::expert_round_act_kernel, params, 0, kComputeThreads);
    run(cuda::expert_down_fp8_kernel, params, sizeof(cuda::ExpertShared));
  }
  void launch(const cuda::ExpertGateUpGemmParams& params) override {
    cuda::check_expert_gate_up_gemm(params);
    run(cuda::expert_pack_x_kernel, params, 0, kComputeThreads);
    run(cuda::expert_gate_up_gemm_kernel, params, sizeof(cuda::ExpertGemmShared),
        cuda::kGemmThreads);
  }
  void launch(const cuda::ExpertDownGemmParams& params) override {
    cuda::check_expert_down_gemm(params);
    run(cuda::expert_pack_act_kernel, params, 0, kComputeThreads);
    run(cuda::expert_down_gemm_kernel, params, sizeof(cuda::ExpertGemmShared), cuda::kGemmThreads);
    run(cuda::expert_combine_kernel, params, sizeof(cuda::CombineShared), kComputeThreads);
  }
  void launch(const cuda::ExpertGateUpMxfp8Params& params) override {
    cuda::check_expert_gate_up_mxfp8(params);
    run(cuda::expert_round_x_mxfp8_kernel, params, 0, kComputeThreads);
    multiply_on_host(cuda::gate_up_products(params));
    run(cuda::expert_swiglu_kernel, params, 0, kComputeThreads);
  }
  void launch(const cuda::ExpertDownMxfp8Params& params) override {
    cuda::check_expert_down_mxfp8(params);
    run(cuda::expert_round_act_mxfp8_kernel, params, 0, kComputeThreads);
    multiply_on_host(cuda::down_products(params));
    run(cuda::expert_combine_mxfp8_kernel, params, sizeof(cuda::CombineShared), kComputeThreads);
  }
  void launch(const cuda::ProjectionParams& params) override {
    cuda::check_projection(params);
    tiles.push_back(params.tiles);
    run(cuda::projection_kernel(params), params, sizeof(cuda::ProjectionShared));
  }
  void launch(const cuda::RmsNormParams& params) override {
    cuda::check_rms_norm(params);
    run(cuda::rms_norm_kernel, params, sizeof(cuda::NormShared), kComputeThreads);
  }
  void launch(const cuda::AttentionParams& params) override {
    cuda::check_attention(params);
    run(cuda::attention_kernel, params, sizeof(cuda::AttentionShared));
    run(cuda::attention_combine_kernel, params, 0, kComputeThreads);
  }
  void launch(const cuda::RouterLogitsParams& params) override {
    cuda::check_router_logits(params);
    run(cuda::router_logits_kernel(params), params, sizeof(cuda::RouterShared));
  }
  void launch(const cuda::SelectExpertsParams& params) override {
    cuda::check_select_experts(params);
    run(cuda::select_experts_kernel, params, sizeof(cuda::SelectShared), kComputeThreads, 1);
  }
  void launch(const cuda::SampleParams& params) override {
    cuda::check_sample(params);
    run(cuda::sample_best_kernel, params, 0, kComputeThreads);
    if (params.rules.temperature != 0.0f)
      run(cuda::sample_weigh_kernel, params, 0, kComputeThreads);
    run(cuda::sample_draw_kernel, params, sizeof(cuda::DrawShared), kComputeThreads);
  }
  void launch(const cuda::SampleRowsParams& params) override {
    cuda::check_sample_rows(params);
    run(cuda::sample_rows_kernel, params, sizeof(cuda::DrawShared), kComputeThreads);
  }
  void launch(const cuda::AcceptParams& params) override {
    cuda::check_accept(params);
    run(cuda::accept_kernel, params, 0, 32, 1);
  }
  void launch(const cuda::EdgeRelayParams& params, uint32_t num_blocks) override {
    cuda::check_edge_relay(params, num_blocks);
    run(cuda::edge_relay_kernel, params, sizeof(cuda::RelayShared), cuda::kRelayThreads, num_blocks);
  }

  KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>& call) override {
    KernelTimes times;
    for (uint32_t i = 0; i < num_calls; ++i) {
      const double begin = clock_s_;
      call(i);
      times.call_s.push_back(clock_s_ - begin);
      times.read_s.push_back(1e-6);
      times.floor_s.push_back(0.5e-6);
    }
    return times;
  }

  // What was launched.
  std::vector<const uint8_t*> tiles;
  std::vector<std::vector<uint32_t>> active;

 private:
  static constexpr uint32_t kMultiprocessors = 3;  ///< each has a block
  static constexpr uint32_t kComputeThreads = cuda::kComputeWarps * 32;

  template <typename Params>
  void run(void (*kernel)(Params), const Params& params, size_t shared_bytes,
           uint32_t num_threads = cuda::kBlockThreads, uint32_t num_blocks = kMultiprocessors) {
    const emulation::LaunchResult done =
        emulation::launch(options_of({.num_blocks = num_blocks}, num_threads, shared_bytes), kernel, params);
    expect_none(done.error);
    clock_s_ += 1e-6 * static_cast<double>(done.statistics.num_rounds) +
                1e-9 * static_cast<double>(done.statistics.num_switches);
  }

  double clock_s_ = 0.0;
};

}  // namespace fixture

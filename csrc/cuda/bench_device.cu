// The GPU of the kernel benchmarks: memory, launches, and times taken by events on the device.
#include "cuda/bench_device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cuda/attention.h"
#include "cuda/cuda_memory.cuh"
#include "cuda/edge_relay.h"
#include "cuda/expert_fp8.h"
#include "cuda/expert_gemm.h"
#include "cuda/expert_mlp.h"
#include "cuda/expert_mxfp8.h"
#include "cuda/launch.cuh"
#include "cuda/projection.h"
#include "cuda/router.h"
#include "cuda/sampling.h"

namespace mimo_rt::cuda {
namespace {

constexpr uint32_t kReadThreads = 512, kReadBlocksPerSm = 4, kReadUnroll = 8;

/// Reads `num_lines` lines of 16 bytes, a multiple of what one step of the grid takes. They take the place of whatever
/// the L2 held: not __ldcs, whose lines are the first to go.
__global__ void __launch_bounds__(kReadThreads)
    read_kernel(const uint4* __restrict__ lines, uint64_t num_lines, uint32_t* sink) {
  const uint64_t num_threads = uint64_t{gridDim.x} * kReadThreads;
  uint32_t sum = 0;
  for (uint64_t i = uint64_t{blockIdx.x} * kReadThreads + threadIdx.x; i < num_lines;
       i += num_threads * kReadUnroll) {
    uint4 line[kReadUnroll];
#pragma unroll
    for (uint32_t j = 0; j < kReadUnroll; ++j) line[j] = __ldcg(lines + i + j * num_threads);
#pragma unroll
    for (uint32_t j = 0; j < kReadUnroll; ++j)
      sum |= line[j].x | line[j].y | line[j].z | line[j].w;
  }
  if (sum != 0) *sink = sum;  // never: the memory is zero
}

__global__ void empty_kernel() {}

class Event {
 public:
  Event() { MIMO_RT_CUDA_CALL(cudaEventCreate(&event_), kCall); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record() { MIMO_RT_CUDA_CALL(cudaEventRecord(event_, nullptr), kCall); }
  double seconds_since(const Event& begin) const {
    float ms = 0;
    MIMO_RT_CUDA_CALL(cudaEventElapsedTime(&ms, begin.event_, event_), kCall);
    return 1e-3 * double{ms};
  }

 private:
  inline static const KernelCall kCall{"KernelBench.run", "events"};
  cudaEvent_t event_ = nullptr;
};

class CudaBenchDevice : public CudaMemory<BenchDevice> {
 public:
  CudaBenchDevice() : CudaMemory("KernelBench") {
    num_blocks_ = num_multiprocessors() * kReadBlocksPerSm;
    const uint64_t step = uint64_t{num_blocks_} * kReadThreads * kReadUnroll * sizeof(uint4);
    constexpr uint64_t kLeast = uint64_t{1} << 30;
    const uint64_t wanted =
        std::max(kLeast, 4 * static_cast<uint64_t>(std::max(properties().l2CacheSize, 0)));
    read_bytes_ = (wanted + step - 1) / step * step;
    check_free(*this, read_bytes_, "reads that measure the bandwidth", "Close other sessions and programs.");
    read_buffer_ = allocate(read_bytes_);
    sink_ = static_cast<uint32_t*>(allocate(sizeof(uint32_t)));
    MIMO_RT_CUDA_CALL(cudaMemset(read_buffer_, 0, read_bytes_), kernel_call());
  }

  uint64_t read_bytes() const override { return read_bytes_; }
  uint32_t num_multiprocessors() const override {
    return static_cast<uint32_t>(properties().multiProcessorCount);
  }
  void check_mxfp8() const override {
    const CurrentDevice current(device());
    check_block_scaled("KernelBench.open");
  }

  void launch(const ExpertGateUpParams& params) override {
    launch_here(launch_expert_gate_up, params);
  }
  void launch(const ExpertDownParams& params) override { launch_here(launch_expert_down, params); }
  void launch(const ExpertGateUpFp8Params& params) override {
    launch_here(launch_expert_gate_up_fp8, params);
  }
  void launch(const ExpertDownFp8Params& params) override {
    launch_here(launch_expert_down_fp8, params);
  }
  void launch(const ExpertGateUpGemmParams& params) override {
    launch_here(launch_expert_gate_up_gemm, params);
  }
  void launch(const ExpertDownGemmParams& params) override {
    launch_here(launch_expert_down_gemm, params);
  }
  void launch(const ExpertGateUpMxfp8Params& params) override {
    launch_here(launch_expert_gate_up_mxfp8, params);
  }
  void launch(const ExpertDownMxfp8Params& params) override {
    launch_here(launch_expert_down_mxfp8, params);
  }
  void launch(const ProjectionParams& params) override { launch_here(launch_projection, params); }
  void launch(const RmsNormParams& params) override { launch_here(launch_rms_norm, params); }
  void launch(const AttentionParams& params) override { launch_here(launch_attention, params); }
  void launch(const RouterLogitsParams& params) override {
    launch_here(launch_router_logits, params);
  }
  void launch(const SelectExpertsParams& params) override {
    launch_here(launch_select_experts, params);
  }
  void launch(const SampleParams& params) override { launch_here(launch_sample, params); }
  void launch(const SampleRowsParams& params) override { launch_here(launch_sample_rows, params); }
  void launch(const EdgeRelayParams& params, uint32_t num_blocks) override {
    launch_here(launch_edge_relay, params, {.stream = nullptr, .num_blocks = num_blocks});
  }
  void launch(const AcceptParams& params) override { launch_here(launch_accept, params); }

  // A read takes longer than the host needs for the launch behind it: the kernel never waits for
  // the host.
  KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>& call) override {
    const CurrentDevice current(device());
    std::vector<Event> begin(num_calls), middle(num_calls), end(num_calls), floor(num_calls);
    for (uint32_t i = 0; i < num_calls; ++i) {
      begin[i].record();
      read_kernel<<<num_blocks_, kReadThreads>>>(static_cast<const uint4*>(read_buffer_),
                                                 read_bytes_ / sizeof(uint4), sink_);
      MIMO_RT_CUDA_CALL(cudaGetLastError(), kernel_call());
      middle[i].record();
      call(i);
      end[i].record();
      empty_kernel<<<1, 1>>>();
      MIMO_RT_CUDA_CALL(cudaGetLastError(), kernel_call());
      floor[i].record();
    }
    MIMO_RT_CUDA_CALL(cudaDeviceSynchronize(), kernel_call());
    KernelTimes times;
    for (uint32_t i = 0; i < num_calls; ++i) {
      times.read_s.push_back(middle[i].seconds_since(begin[i]));
      times.call_s.push_back(end[i].seconds_since(middle[i]));
      times.floor_s.push_back(floor[i].seconds_since(end[i]));
    }
    return times;
  }

 private:
  /// On the GPU that has the memory, whichever is the calling thread's current one.
  template <typename Params>
  void launch_here(void (*launch)(const Params&, const LaunchOptions&), const Params& params,
                   const LaunchOptions& options = {}) {
    const CurrentDevice current(device());
    launch(params, options);
  }

  uint32_t num_blocks_ = 0;
  uint64_t read_bytes_ = 0;
  void* read_buffer_ = nullptr;
  uint32_t* sink_ = nullptr;
};

}  // namespace

std::unique_ptr<BenchDevice> open_bench_device() {
  const CurrentDevice current(kFirstDevice);
  return std::make_unique<CudaBenchDevice>();
}

}  // namespace mimo_rt::cuda

// The GPU of the executor. Everything goes through the default stream, which keeps the order.
#include "cuda/step_device.h"

#include <chrono>
#include <thread>

#include "cuda/cuda_memory.cuh"
#include "cuda/persistent.h"

namespace mimo_rt::cuda {
namespace {

class CudaStepDevice : public CudaMemory<StepDevice> {
 public:
  CudaStepDevice() : CudaMemory("Engine") {}

  uint32_t num_multiprocessors() const override {
    return static_cast<uint32_t>(properties().multiProcessorCount);
  }
  uint64_t free_bytes() const override {
    const CurrentDevice current(device());
    size_t free = 0, total = 0;
    MIMO_RT_CUDA_CALL(cudaMemGetInfo(&free, &total), kernel_call());
    return free;
  }
  void* allocate_pinned(uint64_t num_bytes) override {
    const CurrentDevice current(device());
    void* memory = nullptr;
    const cudaError_t status = cudaHostAlloc(&memory, num_bytes, cudaHostAllocMapped);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      fail(ErrorCode::out_of_memory, kernel_call().where, "the host cannot pin ", num_bytes,
           " bytes. Free memory, or raise the limit of locked memory (ulimit -l).");
    }
    check_cuda(status, "cudaHostAlloc", kernel_call());
    std::fill_n(static_cast<uint8_t*>(memory), num_bytes, uint8_t{0});
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    const CurrentDevice current(device());
    if (memory) cudaFreeHost(memory);
  }

  void send(void* to, const void* pinned, uint64_t num_bytes) override {
    copy_async(to, pinned, num_bytes, cudaMemcpyHostToDevice);
  }
  void launch(const PersistentParams& params, uint32_t num_blocks) override {
    const CurrentDevice current(device());
    launch_persistent(params, {.stream = nullptr, .num_blocks = num_blocks});
  }
  void receive(void* pinned, const void* from, uint64_t num_bytes) override {
    copy_async(pinned, from, num_bytes, cudaMemcpyDeviceToHost);
  }
  // Looks again and again: a step takes milliseconds, and waking up would be a part of them.
  bool wait(uint64_t timeout_ns) override {
    const CurrentDevice current(device());
    const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(timeout_ns);
    for (;;) {
      const cudaError_t status = cudaStreamQuery(nullptr);
      if (status != cudaErrorNotReady) {
        check_cuda(status, "the step", kernel_call());
        return true;
      }
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
  }

 private:
  void copy_async(void* to, const void* from, uint64_t num_bytes, cudaMemcpyKind kind) {
    const CurrentDevice current(device());
    MIMO_RT_CUDA_CALL(cudaMemcpyAsync(to, from, num_bytes, kind, nullptr), kernel_call());
  }
};

}  // namespace

std::shared_ptr<StepDevice> open_step_device() { return std::make_shared<CudaStepDevice>(); }

}  // namespace mimo_rt::cuda

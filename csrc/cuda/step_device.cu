// The GPU of the executor. Steps go through a stream of their own, which keeps their order and waits
// for nobody else's work on the GPU; memory is filled through a second one, also while a step runs.
#include "cuda/step_device.h"

#include <chrono>
#include <thread>

#include "cuda/cuda_memory.cuh"
#include "cuda/persistent.h"

namespace mimo_rt::cuda {
namespace {

/// A stream that does not wait for the default one.
class Stream {
 public:
  explicit Stream(const KernelCall& call) {
    MIMO_RT_CUDA_CALL(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), call);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaStepDevice : public CudaMemory<StepDevice> {
 public:
  /// The current device stays current until all members are made.
  CudaStepDevice() : CudaMemory("Engine"), steps_(kernel_call()), copies_(kernel_call()) {}

  void upload(void* to, const void* from, uint64_t num_bytes) override {
    copy_now(to, from, num_bytes, cudaMemcpyHostToDevice);
  }
  void copy(void* to, const void* from, uint64_t num_bytes) override {
    copy_now(to, from, num_bytes, cudaMemcpyDeviceToDevice);
  }
  void download(void* to, const void* from, uint64_t num_bytes) override {
    const CurrentDevice current(device());
    MIMO_RT_CUDA_CALL(cudaStreamSynchronize(steps_), kernel_call());
    copy_now(to, from, num_bytes, cudaMemcpyDeviceToHost);
  }

  uint32_t num_multiprocessors() const override {
    return static_cast<uint32_t>(properties().multiProcessorCount);
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
    cudaStreamSynchronize(steps_);  // a launch may write there until it ends
    if (memory) cudaFreeHost(memory);
  }

  void send(void* to, const void* pinned, uint64_t num_bytes) override {
    copy_async(to, pinned, num_bytes, cudaMemcpyHostToDevice);
  }
  void launch(const PersistentParams& params, uint32_t num_blocks) override {
    const CurrentDevice current(device());
    kernel_.launch(params, {.stream = steps_, .num_blocks = num_blocks});
  }
  void receive(void* pinned, const void* from, uint64_t num_bytes) override {
    copy_async(pinned, from, num_bytes, cudaMemcpyDeviceToHost);
  }
  // Looks again and again: a step takes milliseconds, and waking up would be a part of them.
  bool wait(uint64_t timeout_ns, const std::function<bool()>& has_news) override {
    const CurrentDevice current(device());
    const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(timeout_ns);
    for (;;) {
      const cudaError_t status = cudaStreamQuery(steps_);
      if (status != cudaErrorNotReady) {
        check_cuda(status, "the step", kernel_call());
        return true;
      }
      (void)cudaGetLastError();  // else the next launch would find it
      if (has_news() || std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
  }

 private:
  void copy_async(void* to, const void* from, uint64_t num_bytes, cudaMemcpyKind kind) {
    const CurrentDevice current(device());
    MIMO_RT_CUDA_CALL(cudaMemcpyAsync(to, from, num_bytes, kind, steps_), kernel_call());
  }
  void copy_now(void* to, const void* from, uint64_t num_bytes, cudaMemcpyKind kind) {
    const CurrentDevice current(device());
    MIMO_RT_CUDA_CALL(cudaMemcpyAsync(to, from, num_bytes, kind, copies_), kernel_call());
    MIMO_RT_CUDA_CALL(cudaStreamSynchronize(copies_), kernel_call());
  }

  const Stream steps_, copies_;
  const PersistentKernel kernel_;
};

}  // namespace

std::shared_ptr<StepDevice> open_step_device() {
  const CurrentDevice current(kFirstDevice);
  return std::make_shared<CudaStepDevice>();
}

}  // namespace mimo_rt::cuda

// DeviceMemory of a real GPU. Thread-safe: the owner of memory may end on any thread.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/launch.cuh"
#include "cuda/memory_place.h"

namespace mimo_rt::cuda {

/// What list_backends() speaks of; CUDA_VISIBLE_DEVICES chooses which one that is.
inline constexpr int kFirstDevice = 0;

/// Makes a device the calling thread's current one for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : device_(device) {
    if (cudaGetDevice(&before_) == cudaSuccess && before_ != device_) cudaSetDevice(device_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (before_ != device_) cudaSetDevice(before_);
  }

 private:
  const int device_;
  int before_ = 0;
};

inline MemoryPlace place_of(const cudaPointerAttributes& attributes) {
  using enum MemoryPlace::Kind;
  switch (attributes.type) {
    case cudaMemoryTypeDevice: return {device, attributes.device};
    case cudaMemoryTypeManaged: return {managed};
    case cudaMemoryTypeHost: return {pinned};
    default: return {host};
  }
}

/// `Base`: DeviceMemory or an interface that extends it. Holds the device that is current when it is
/// made.
template <typename Base>
class CudaMemory : public Base {
 public:
  explicit CudaMemory(const char* where) : call_{where, "memory"} {
    check_device(call_);
    MIMO_RT_CUDA_CALL(cudaGetDevice(&device_), call_);
    MIMO_RT_CUDA_CALL(cudaGetDeviceProperties(&properties_, device_), call_);
  }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  ~CudaMemory() override {
    const CurrentDevice current(device_);
    for (void* memory : memory_) cudaFree(memory);
  }

  std::string name() const override { return properties_.name; }
  uint64_t free_bytes() const override {
    const CurrentDevice current(device_);
    size_t free = 0, total = 0;
    MIMO_RT_CUDA_CALL(cudaMemGetInfo(&free, &total), call_);
    return free;
  }

  void* allocate(uint64_t num_bytes) override {
    const CurrentDevice current(device_);
    const std::lock_guard lock(mutex_);
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, num_bytes);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      fail(ErrorCode::out_of_memory, call_.where, no_room_text(*this, num_bytes));
    }
    check_cuda(status, "cudaMalloc", call_);
    memory_.push_back(memory);
    return memory;
  }
  void release(void* memory) noexcept override {
    const CurrentDevice current(device_);
    const std::lock_guard lock(mutex_);
    const auto found = std::find(memory_.begin(), memory_.end(), memory);
    if (found == memory_.end()) return;
    memory_.erase(found);
    cudaFree(memory);
  }

  void upload(void* to, const void* from, uint64_t num_bytes) override {
    const CurrentDevice current(device_);
    MIMO_RT_CUDA_CALL(cudaMemcpy(to, from, num_bytes, cudaMemcpyHostToDevice), call_);
  }
  void copy(void* to, const void* from, uint64_t num_bytes) override {
    const CurrentDevice current(device_);
    MIMO_RT_CUDA_CALL(cudaMemcpy(to, from, num_bytes, cudaMemcpyDeviceToDevice), call_);
  }
  void download(void* to, const void* from, uint64_t num_bytes) override {
    const CurrentDevice current(device_);
    MIMO_RT_CUDA_CALL(cudaDeviceSynchronize(), call_);
    MIMO_RT_CUDA_CALL(cudaMemcpy(to, from, num_bytes, cudaMemcpyDeviceToHost), call_);
  }

  void check_operand(const char* where, const char* name, const void* pointer) const override {
    const CurrentDevice current(device_);
    cudaPointerAttributes attributes{};
    MIMO_RT_CUDA_CALL(cudaPointerGetAttributes(&attributes, pointer), call_);
    check_place(where, name, place_of(attributes), device_);
  }

 protected:
  int device() const { return device_; }
  const cudaDeviceProp& properties() const { return properties_; }
  const KernelCall& kernel_call() const { return call_; }

 private:
  const KernelCall call_;
  int device_ = 0;
  cudaDeviceProp properties_{};
  std::mutex mutex_;  // guards what follows
  std::vector<void*> memory_;
};

}  // namespace mimo_rt::cuda

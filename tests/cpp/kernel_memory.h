// Memory that kernels under test can reach: ordinary memory under emulation, managed memory when
// the same test is built for a real GPU (MIMO_RT_TEST_ON_GPU).
#pragma once

#include <vector>

#if defined(MIMO_RT_TEST_ON_GPU)
#include <cuda_runtime_api.h>

#include <new>
#endif

namespace fixture {

#if defined(MIMO_RT_TEST_ON_GPU)
template <typename T>
struct ManagedAllocator {
  using value_type = T;
  ManagedAllocator() = default;
  template <typename U>
  ManagedAllocator(const ManagedAllocator<U>&) {}  // NOLINT: converting on purpose

  T* allocate(size_t count) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, count * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { (void)cudaFree(memory); }
  bool operator==(const ManagedAllocator&) const { return true; }
};

template <typename T>
using KernelVector = std::vector<T, ManagedAllocator<T>>;
#else
template <typename T>
using KernelVector = std::vector<T>;
#endif

}  // namespace fixture

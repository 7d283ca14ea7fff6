// Tensor-core products of a warp group (four warps, the first a multiple of four), carried out by the
// async proxy while the threads go on. sm_90a only.
//
// Registers that a product reads or writes belong to it from its issue until a wait says that its
// group is complete; `wgmma_fence` comes between ordinary accesses to them and the next product.
#pragma once

#include "cuda/device/ptx/address.cuh"

namespace mimo_rt::ptx {

/// A B operand in shared memory: columns of 64 BF16, 128 bytes each, eight in 1024 bytes that begin
/// at a multiple of 1024, one eight after the other; 16-byte chunk c of column n lies at c ^ n % 8
/// (128-byte swizzle). `first`: of the 16 k that the product takes, 32 bytes after those before it.
__device__ __forceinline__ uint64_t wgmma_columns(const void* first) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightColumns = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kNotUsed = uint64_t{1} << 16;  // the other stride, with this swizzle
  return kSwizzle128 | kEightColumns | kNotUsed | (shared_address(first) & 0x3ffffu) >> 4;
}

/// wgmma.fence: earlier accesses of the registers come before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// wgmma.commit_group: the products since the last one are a group.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// wgmma.wait_group: until at most the last kNumGroups groups are on their way. Then wgmma_pin.
template <uint32_t kNumGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNumGroups) : "memory");
}

/// No instruction: keeps the compiler from moving accesses of the accumulators across.
template <uint32_t kGroups>
__device__ __forceinline__ void wgmma_pin(float (&c)[kGroups][4]) {
#pragma unroll
  for (uint32_t i = 0; i < kGroups; ++i)
    asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}

#define MIMO_RT_EIGHT(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define MIMO_RT_OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(columns), "r"(1)

/// wgmma.mma_async.m64n(8 kGroups)k16, BF16 in, FP32 accumulators: c += a b. Each warp has 16 rows,
/// a and c[i] (columns 8i ..) as fragments of mma_m16n8k16; b: `wgmma_columns`. All warps of the
/// group take part, with the same b.
template <uint32_t kGroups>
__device__ __forceinline__ void wgmma_m64k16(float (&c)[kGroups][4], const uint32_t (&a)[4],
                                             uint64_t columns) {
  static_assert(kGroups == 1 || kGroups == 2 || kGroups == 4 || kGroups == 8 || kGroups == 16);
  if constexpr (kGroups == 1) {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.ne.b32 add, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, %8, add, 1, 1, 0;\n}"
        : MIMO_RT_EIGHT(0)
        : MIMO_RT_OPERANDS);
  } else if constexpr (kGroups == 2) {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.ne.b32 add, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, add, 1, 1, 0;\n}"
        : MIMO_RT_EIGHT(0), MIMO_RT_EIGHT(1)
        : MIMO_RT_OPERANDS);
  } else if constexpr (kGroups == 4) {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.ne.b32 add, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, add, 1, 1, 0;\n}"
        : MIMO_RT_EIGHT(0), MIMO_RT_EIGHT(1), MIMO_RT_EIGHT(2), MIMO_RT_EIGHT(3)
        : MIMO_RT_OPERANDS);
  } else if constexpr (kGroups == 8) {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}"
        : MIMO_RT_EIGHT(0), MIMO_RT_EIGHT(1), MIMO_RT_EIGHT(2), MIMO_RT_EIGHT(3),
          MIMO_RT_EIGHT(4), MIMO_RT_EIGHT(5), MIMO_RT_EIGHT(6), MIMO_RT_EIGHT(7)
        : MIMO_RT_OPERANDS);
  } else {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n}"
        : MIMO_RT_EIGHT(0), MIMO_RT_EIGHT(1), MIMO_RT_EIGHT(2), MIMO_RT_EIGHT(3),
          MIMO_RT_EIGHT(4), MIMO_RT_EIGHT(5), MIMO_RT_EIGHT(6), MIMO_RT_EIGHT(7),
          MIMO_RT_EIGHT(8), MIMO_RT_EIGHT(9), MIMO_RT_EIGHT(10), MIMO_RT_EIGHT(11),
          MIMO_RT_EIGHT(12), MIMO_RT_EIGHT(13), MIMO_RT_EIGHT(14), MIMO_RT_EIGHT(15)
        : MIMO_RT_OPERANDS);
  }
}

#undef MIMO_RT_EIGHT
#undef MIMO_RT_OPERANDS

}  // namespace mimo_rt::ptx

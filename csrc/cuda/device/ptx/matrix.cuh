// Tensor-core products of one warp, and packed BF16 arithmetic.
//
// Fragments of m16n8k16, lane = 4 * g + q: a[0] = A[g][2q, 2q+1], a[1] = A[g + 8][2q, 2q+1],
// a[2], a[3] = the same rows at k + 8; b[0] = B[2q, 2q+1][g], b[1] = the same at k + 8;
// c[0], c[1] = C[g][2q, 2q+1]; c[2], c[3] = C[g + 8][2q, 2q+1]. The lower half of a word is the
// lower index.
#pragma once

#include "cuda/device/ptx/address.cuh"

namespace mimo_rt::ptx {

/// mma.sync.m16n8k16, BF16 in, FP32 accumulators: c += a b. All lanes take part.
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// mma.sync.m16n8k32, E4M3 in, FP32 accumulators: c += a b. Fragments as above with four neighbours
/// of k in a word: a[0] = A[g][4q .. 4q + 3], a[1] the same of g + 8, a[2], a[3] the same at k + 16;
/// b[0] = B[4q .. 4q + 3][g], b[1] the same at k + 16. All lanes take part. One
/// instruction on sm_89 and sm_120; for sm_90a and sm_100a ptxas makes 12 unpackings to FP16 and two
/// HMMA.16816 of it.
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// ldmatrix.x4: four 8x8 matrices of 16-bit elements; lane 8i + r holds the address of row r of
/// matrix i (16-byte aligned, shared); word i of lane 4g + q is elements 2q, 2q+1 of row g of it.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&words)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

/// The same with each matrix transposed: word i of lane 4g + q is elements g of rows 2q, 2q+1.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&words)[4],
                                                       const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

/// ex2.approx.ftz: 2^x, relative error below 2^-22; 0 for -infinity and below 2^-126.
__device__ __forceinline__ float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

/// The bits of a float.
__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }

/// The halves of a BF16x2 as floats.
__device__ __forceinline__ float low_bf16(uint32_t word) { return as_float(word << 16); }
__device__ __forceinline__ float high_bf16(uint32_t word) { return as_float(word & 0xffff0000u); }

/// mul.rn.bf16x2: both halves, rounded to nearest even; subnormals in and out are kept.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

/// cvt.rn.bf16x2.f32: two floats, rounded to nearest even.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// cvt.rn.satfinite.e4m3x2.f32: two floats, rounded to nearest even, at most 448; `low` in bits 0..7.
__device__ __forceinline__ uint32_t to_e4m3x2(float low, float high) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

/// prmt: byte i of the result is byte n of `low` (n = 0..3) and `high` (4..7), n in bits 4i .. 4i + 2
/// of the selector; bits 4i + 3 must be 0.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

}  // namespace mimo_rt::ptx

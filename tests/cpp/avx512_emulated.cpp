// The AVX-512 sources, renamed and compiled against SIMDe (see simde/immintrin.h) with -mavx2 -mfma -mf16c:
// here for processors without BF16, in avx512_bf16_emulated.cpp for those with it.
#include <immintrin.h>

#define avx512 avx512_emulated
#define avx512_bf16 avx512_bf16_emulated
#define kernels_avx512 kernels_avx512_emulated
#define kernels_avx512_bf16 kernels_avx512_bf16_emulated
#define kernels_avx512_int8 kernels_avx512_int8_emulated
#define kernels_avx512_bf16_int8 kernels_avx512_bf16_int8_emulated

#include "cpu/avx512/attend.cpp"
#include "cpu/avx512/elementwise.cpp"
#include "cpu/avx512/gemm_bf16_f32.cpp"
#include "cpu/avx512/gemm_fp8.cpp"
#include "cpu/avx512/gemm_mxfp4.cpp"
#include "cpu/avx512/gemm_mxfp4_int8.cpp"
#include "cpu/avx512/prepare.cpp"
#include "cpu/avx512/table.cpp"

// peak.cpp computes nothing that a test could compare.
namespace mimo_rt::cpu::MIMO_RT_ISA {
uint64_t run_products(int, uint64_t) { return 0; }
const char* product_source(int) { return ""; }
uint64_t run_int8_products(uint64_t) { return 0; }
const char* int8_product_source() { return ""; }
}  // namespace mimo_rt::cpu::MIMO_RT_ISA

// What the files of this folder offer each other: plain declarations with external linkage.
//
// The folder is compiled twice (see CMakeLists.txt): as avx512, which needs F, BW, VL and DQ, and
// with MIMO_RT_AVX512_BF16 as avx512_bf16, which needs BF16 and VBMI too.
#pragma once

#include "../kernels.h"

#if defined(MIMO_RT_AVX512_BF16)
#define MIMO_RT_ISA avx512_bf16
#else
#define MIMO_RT_ISA avx512
#endif

namespace mimo_rt::cpu::MIMO_RT_ISA {

void gemm_mxfp4(const GemmArgs& args);
void gemm_fp8(const GemmArgs& args);
void gemm_bf16(const GemmArgs& args);
void gemm_f32(const GemmArgs& args);

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k);
void prepare(int format, const PrepareArgs& args);

uint64_t attend_scratch_floats(uint32_t num_q, uint32_t qk_head_dim, uint32_t v_head_dim);
void attend(const AttendArgs& args);

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y);
void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out);
void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual);
void axpy(float weight, const float* y, uint32_t num_elements, float* acc);

}  // namespace mimo_rt::cpu::MIMO_RT_ISA

// What the files of an ISA folder offer each other: plain declarations with external linkage.
//
// The headers of this folder are compiled into every ISA: the includer defines MIMO_RT_ISA, the
// namespace, and everything that is defined here sits in an anonymous namespace or in that one. The
// linker can never take one ISA's code for another's.
#pragma once

#include "../kernels.h"

#define MIMO_RT_INLINE static inline __attribute__((always_inline))

namespace mimo_rt::cpu::MIMO_RT_ISA {

void gemm_mxfp4(const GemmArgs& args);
void gemm_fp8(const GemmArgs& args);
void gemm_bf16(const GemmArgs& args);
void gemm_f32(const GemmArgs& args);
void gemm_mxfp4_int8(const GemmArgs& args);

uint64_t prepared_bytes(int format, uint32_t num_tokens, uint32_t k);
void prepare(int format, const PrepareArgs& args);
void prepare_int8(const PrepareArgs& args);  ///< for gemm_mxfp4_int8, see int8_block.h

uint64_t attend_scratch_floats(uint32_t num_heads, uint32_t qk_head_dim, uint32_t v_head_dim);
void attend(const AttendArgs& args);

void rms_norm(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y);
void silu_mul(const float* gate, const float* up, uint32_t num_elements, bf16_t* out);
void add_residual(const float* delta, uint32_t num_elements, bf16_t* residual);
void axpy(float weight, const float* y, uint32_t num_elements, float* acc);

uint64_t run_products(int format, uint64_t num_rounds);
const char* product_source(int format);
uint64_t run_int8_products(uint64_t num_rounds);  ///< of gemm_mxfp4_int8
const char* int8_product_source();

}  // namespace mimo_rt::cpu::MIMO_RT_ISA

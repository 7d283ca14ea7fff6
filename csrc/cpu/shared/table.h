// The kernels of an ISA folder as tables: with BF16 activations, and with INT8 ones for MXFP4.
#pragma once

#include "../tile_layout.h"
#include "entries.h"
#include "int8_block.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

static void gemm(int format, const GemmArgs& args) {
  switch (format) {
    case layout::kMxfp4:
      return gemm_mxfp4(args);
    case layout::kFp8:
      return gemm_fp8(args);
    case layout::kBf16:
      return gemm_bf16(args);
    default:
      return gemm_f32(args);
  }
}

static constexpr Kernels make_table(const char* name) {
  return {name,   prepared_bytes, prepare,  gemm,         attend_scratch_floats,
          attend, rms_norm,       silu_mul, add_residual, axpy,
          run_products, product_source};
}

static uint64_t prepared_bytes_int8(int format, uint32_t num_tokens, uint32_t k) {
  if (format != layout::kMxfp4) return prepared_bytes(format, num_tokens, k);
  return uint64_t{num_tokens} * (k / layout::kBlockK) * sizeof(Int8Block);
}

static void prepare_with_int8(int format, const PrepareArgs& args) {
  return format == layout::kMxfp4 ? prepare_int8(args) : prepare(format, args);
}

static void gemm_with_int8(int format, const GemmArgs& args) {
  return format == layout::kMxfp4 ? gemm_mxfp4_int8(args) : gemm(format, args);
}

static uint64_t run_products_with_int8(int format, uint64_t num_rounds) {
  return format == layout::kMxfp4 ? run_int8_products(num_rounds) : run_products(format, num_rounds);
}

static const char* product_source_with_int8(int format) {
  return format == layout::kMxfp4 ? int8_product_source() : product_source(format);
}

static constexpr Kernels make_int8_table(const char* name) {
  return {name,   prepared_bytes_int8, prepare_with_int8, gemm_with_int8, attend_scratch_floats,
          attend, rms_norm,            silu_mul,          add_residual,   axpy,
          run_products_with_int8, product_source_with_int8};
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA

// The table of compute kernels that one instruction set provides to the CPU executor.
//
// Plain declarations only: this header is compiled with AVX2 and AVX-512 flags, so it must not define inline functions
// (a weak symbol from an AVX-512 object could replace the baseline one).
//
// Contract of every kernel: the result for one token (row) depends on that row alone, never on num_tokens, on the other
// rows, on the split of row groups into calls or on alignment, so logits are bit-identical for any batch and any worker
// count of one ISA. No kernel allocates, locks or calls the operating system.
#pragma once

#include "core/kv_segment.h"

#include <stddef.h>
#include <stdint.h>

namespace mimo_rt::cpu {

using bf16_t = uint16_t;
using mimo_rt::KvSegment;

/// y[token, row] = sum over k of w[row, k] * x[token, k], products exact, FP32 accumulation in an order fixed by k.
/// AVX-512 with BF16 only: vdpbf16ps takes subnormal inputs and results as zero.
struct GemmArgs {
  const uint8_t* weights;   ///< first row group, see csrc/weights/packed.h
  uint32_t num_row_groups;  ///< groups of 16 rows, contiguous
  uint32_t k;               ///< padded k of the packed matrix, multiple of 32
  const void* x;            ///< from `prepare` of the same format and k, 64-byte aligned
  uint32_t num_tokens;      ///< >= 1, any number
  float* y;                 ///< [num_tokens, y_stride]; row r of the first group is column 0
  uint32_t y_stride;        ///< floats, >= 16 * num_row_groups
};

/// Activations of the tokens that one GEMM call sees, reordered for the kernel.
struct PrepareArgs {
  const bf16_t* x;          ///< [*, x_stride]
  uint32_t x_stride;        ///< elements
  const uint32_t* row_ids;  ///< [num_tokens] rows of x; nullptr: 0, 1, 2, …
  uint32_t num_tokens;
  uint32_t k_valid;         ///< elements per row that exist; the rest up to k is zero
  uint32_t k;               ///< padded k
  void* prepared;           ///< prepared_bytes(format, num_tokens, k) bytes, 64-byte aligned
};

/// One token's part of an attention call.
struct AttendRow {
  const bf16_t* q;    ///< [num_q, qk_head_dim]
  bf16_t* out;        ///< [num_q, v_head_dim]
  uint32_t num_keys;  ///< it sees the first so many, 1 or more, of the segments' keys
};

/// Attention of tokens over one kv head, for the q heads that share it. Keys in ascending position.
/// out[h] = sum_j softmax(scale * q[h].k_j, sink_logit[h])_j * v_j   (model paper eq. 2-3: the sink only joins the
/// denominator, unscaled). FP32 throughout, online softmax over fixed blocks of keys counted from the first visible key
/// (never from a segment boundary).
struct AttendArgs {
  const AttendRow* rows;
  uint32_t num_rows;
  uint32_t num_q;              ///< of a row
  uint32_t qk_head_dim, v_head_dim;
  float scale;
  const float* sink_logit;     ///< [num_q] or nullptr
  const KvSegment* segments;   ///< no fewer keys than any row sees
  uint32_t num_segments;
  float* scratch;  ///< attend_scratch_floats(num_rows * num_q, qk_head_dim, v_head_dim) floats, 64-byte aligned
};

struct Kernels {
  const char* name;  ///< "generic", "avx2", "avx512"
  uint64_t (*prepared_bytes)(int format, uint32_t num_tokens, uint32_t k);
  void (*prepare)(int format, const PrepareArgs& args);
  void (*gemm)(int format, const GemmArgs& args);  ///< format = PackedFormat
  uint64_t (*attend_scratch_floats)(uint32_t num_heads, uint32_t qk_head_dim, uint32_t v_head_dim);
  void (*attend)(const AttendArgs& args);
  /// y = bf16(x * rsqrt(mean(x^2) + eps) * weight), FP32 inside.
  void (*rms_norm)(const bf16_t* x, const float* weight, float eps, uint32_t num_elements, bf16_t* y);
  /// out = bf16(silu(gate) * up)
  void (*silu_mul)(const float* gate, const float* up, uint32_t num_elements, bf16_t* out);
  /// residual = bf16(f32(residual) + delta), in place
  void (*add_residual)(const float* delta, uint32_t num_elements, bf16_t* residual);
  /// acc += weight * y (multiplication and addition rounded separately or fused: fixed per ISA)
  void (*axpy)(float weight, const float* y, uint32_t num_elements, float* acc);
  /// The multiply-adds that `gemm` takes for a format, in registers alone: the roof of its products. Returns operations,
  /// two per multiply-add.
  uint64_t (*run_products)(int format, uint64_t num_rounds);
  const char* (*product_source)(int format);  ///< the instruction of run_products
};

// Each lives in its own translation units with its own flags; nullptr when not compiled in.
const Kernels* kernels_generic();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();       ///< needs F, BW, VL, DQ
const Kernels* kernels_avx512_bf16();  ///< the same sources; needs BF16, VBMI and VNNI too
// The same kernels, but MXFP4 products quantise their activations in `prepare`: see
// shared/int8_block.h.
const Kernels* kernels_generic_int8();
const Kernels* kernels_avx2_int8();
const Kernels* kernels_avx512_int8();
const Kernels* kernels_avx512_bf16_int8();

}  // namespace mimo_rt::cpu

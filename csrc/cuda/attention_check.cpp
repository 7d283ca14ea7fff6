// Checks of the attention kernels' arguments. No CUDA in here: they are tested on every machine.
#include "cuda/attention.h"

#include <algorithm>
#include <string>

#include "cuda/param_checks.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.attention";
constexpr uint32_t kMaxHeads = 1024, kMaxContext = 1u << 30;

void check_head_dim(const char* name, uint32_t dim, uint32_t limit) {
  MIMO_RT_CHECK(dim != 0 && dim % 16 == 0 && dim <= limit, unsupported_shape, kWhere, name,
                ": expected a multiple of 16, 16 .. ", limit, ", got ", dim);
}

void check_stride(const char* name, uint32_t stride, uint32_t dim) {
  MIMO_RT_CHECK(stride >= dim && stride % 8 == 0 && stride <= kMaxKvStride, unsupported_shape,
                kWhere, name, ": expected a multiple of 8, ", dim, " .. ", kMaxKvStride, ", got ",
                stride);
}

void check_kv(const std::string& name, const KvView& kv, const AttentionParams& p) {
  check_pointer(kWhere, (name + ".blocks").c_str(), kv.blocks, 16);
  check_stride((name + ".k_stride").c_str(), kv.k_stride, p.qk_head_dim);
  check_stride((name + ".v_stride").c_str(), kv.v_stride, p.v_head_dim);
  MIMO_RT_CHECK(kv.block_rows != 0 && kv.block_rows % kTileKeys == 0, unsupported_shape, kWhere,
                name, ".block_rows: expected a multiple of ", kTileKeys, ", got ", kv.block_rows);
  const uint64_t rows = uint64_t{p.num_kv_heads} * kv.block_rows;
  const uint64_t k_bytes = 2 * rows * kv.k_stride, v_bytes = 2 * rows * kv.v_stride;
  MIMO_RT_CHECK(kv.v_begin >= k_bytes && kv.v_begin % 16 == 0, invalid_argument, kWhere, name,
                ".v_begin: expected a multiple of 16, at least ", k_bytes, ", got ", kv.v_begin);
  MIMO_RT_CHECK(kv.block_bytes >= kv.v_begin + v_bytes && kv.block_bytes % 16 == 0,
                invalid_argument, kWhere, name,
                ".block_bytes: expected a multiple of 16, at least ", kv.v_begin + v_bytes,
                ", got ", kv.block_bytes);
}

/// A ring must hold all that the rows see, and the rows.
void check_visible(const AttentionParams& p) {
  if (p.kv.pages) {
    check_pointer(kWhere, "kv.pages", p.kv.pages, 4);
  } else {
    const uint64_t seen = p.window_tokens ? uint64_t{p.window_tokens} + p.num_rows - 1 : ~0ull;
    const uint64_t needed = std::min<uint64_t>(seen, p.max_context);
    MIMO_RT_CHECK(p.kv.block_rows >= needed, capacity, kWhere,
                  "kv.block_rows: expected a ring of at least ", needed, " rows, got ",
                  p.kv.block_rows);
  }
  MIMO_RT_CHECK(p.block.blocks || (p.first_row == 0 && p.num_block_rows == 0), invalid_argument,
                kWhere, "first_row and num_block_rows: expected 0 without a block, got ",
                p.first_row, " and ", p.num_block_rows);
  if (!p.block.blocks) return;
  check_kv("block", p.block, p);
  MIMO_RT_CHECK(!p.block.pages, invalid_argument, kWhere,
                "block.pages: expected null, the block's rows lie in one block");
  MIMO_RT_CHECK(p.first_row <= p.num_block_rows && p.num_rows <= p.num_block_rows - p.first_row,
                invalid_argument, kWhere, "num_block_rows: expected at least first_row ",
                p.first_row, " + num_rows ", p.num_rows, ", got ", p.num_block_rows);
  MIMO_RT_CHECK(p.block.block_rows >= p.num_block_rows, capacity, kWhere,
                "block.block_rows: expected at least num_block_rows ", p.num_block_rows, ", got ",
                p.block.block_rows);
}

}  // namespace

void check_attention(const AttentionParams& p) {
  check_num_rows(kWhere, "num_rows", p.num_rows);
  check_head_dim("qk_head_dim", p.qk_head_dim, kMaxQkHeadDim);
  check_head_dim("v_head_dim", p.v_head_dim, kMaxVHeadDim);
  MIMO_RT_CHECK(p.num_kv_heads != 0 && p.num_q_heads % p.num_kv_heads == 0 && p.num_q_heads != 0 &&
                    p.num_q_heads <= kMaxHeads,
                unsupported_shape, kWhere, "num_q_heads: expected a multiple of num_kv_heads ",
                p.num_kv_heads, " up to ", kMaxHeads, ", got ", p.num_q_heads);
  check_rows(kWhere, "q", p.q, p.num_q_heads * p.qk_head_dim);
  check_rows(kWhere, "out", p.out, p.num_q_heads * p.v_head_dim);
  check_pointer(kWhere, "position", p.position, 4);
  if (p.sink_logits) check_pointer(kWhere, "sink_logits", p.sink_logits, 4);
  check_pointer(kWhere, "partials", p.partials, 16);
  MIMO_RT_CHECK(p.scale > 0.0f, invalid_argument, kWhere, "scale: expected > 0, got ", p.scale);
  MIMO_RT_CHECK(p.split_keys != 0 && p.split_keys % kChunkKeys == 0 && p.split_keys <= kMaxContext,
                unsupported_shape, kWhere, "split_keys: expected a multiple of ", kChunkKeys,
                ", got ", p.split_keys);
  MIMO_RT_CHECK(p.max_context >= p.num_rows && p.max_context <= kMaxContext, capacity, kWhere,
                "max_context: expected num_rows ", p.num_rows, " .. ", kMaxContext, ", got ",
                p.max_context);
  MIMO_RT_CHECK(p.window_tokens <= kMaxContext, unsupported_shape, kWhere,
                "window_tokens: expected at most ", kMaxContext, ", got ", p.window_tokens);
  check_kv("kv", p.kv, p);
  check_visible(p);
}

}  // namespace mimo_rt::cuda

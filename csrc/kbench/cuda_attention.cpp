#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cuda/kv_layout.h"
#include "kbench/attention_reference.h"
#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"

namespace mimo_rt::kbench {
namespace {

constexpr float kSinkLogit = 1.0f;

LayerConfig layer_of(const KernelCase& c) {
  LayerConfig layer;
  layer.window_tokens = c.window_tokens;
  layer.num_kv_heads = c.num_kv_heads;
  layer.num_q_heads = c.num_kv_heads * c.num_q_per_kv;
  layer.qk_head_dim = c.qk_head_dim;
  layer.v_head_dim = c.v_head_dim;
  return layer;
}

/// Of row 0: the last of its keys. A ring has been gone round two and a half times.
uint32_t position_of(const KernelCase& c) {
  return c.window_tokens ? c.num_keys + c.window_tokens * 5 / 2 : c.num_keys - 1;
}

/// Consecutive tokens of one sequence, causal or ("attention_draft") a draft's block, all of which
/// every token sees. Places are copies of the cache of one layer.
class CudaAttention final : public RowsSubject<cuda::AttentionParams, uint16_t> {
 public:
  CudaAttention(const KernelCase& c, const KernelBenchOptions& options,
                std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        position_(position_of(c)),
        first_key_(position_ + 1 - c.num_keys),
        num_stored_(c.num_keys + c.num_tokens - 1),
        layout_({layer_of(c)}, {position_ + c.num_tokens, c.num_tokens, 1}),
        q_(random_bf16(uint64_t{c.num_tokens} * num_heads() * c.qk_head_dim, options.seed ^ 1)),
        keys_(random_bf16(uint64_t{c.num_kv_heads} * num_stored_ * c.qk_head_dim, options.seed)),
        values_(random_bf16(uint64_t{c.num_kv_heads} * num_stored_ * c.v_head_dim,
                            options.seed ^ 2)),
        pages_(layout_.num_pages()) {
    std::iota(pages_.rbegin(), pages_.rend(), 0u);
    upload_places(make_cache(), options);
    device_pages_ = upload(pages_);
    set_params();
    const double num_elements = double{1} * c.num_kv_heads * num_stored_;
    work_.bytes = 2 * num_elements * (c.qk_head_dim + c.v_head_dim);
    work_.flops = 2.0 * c.num_tokens * num_heads() * c.num_keys * (c.qk_head_dim + c.v_head_dim);
  }

 private:
  uint32_t num_heads() const { return measured_.num_kv_heads * measured_.num_q_per_kv; }
  bool is_draft() const { return measured_.kernel == "attention_draft"; }
  /// Keys in the cache; those of a draft's tokens lie beside it.
  uint32_t num_cached() const { return is_draft() ? measured_.num_keys - 1 : num_stored_; }

  cuda::KvView view(const uint8_t* cache, const uint32_t* pages) const {
    cuda::KvView kv = layout_.view(0, 0, cache);
    if (kv.pages) kv.pages = pages;
    return kv;
  }

  /// The cache as it lies on the device; NaN where no row looks.
  std::vector<uint8_t> make_cache() const {
    const KernelCase& c = measured_;
    const cuda::KvView kv = view(nullptr, pages_.data());
    std::vector<uint8_t> cache(layout_.bytes(), 0xff);
    for (uint32_t head = 0; head < c.num_kv_heads; ++head)
      for (uint32_t j = 0; j < num_cached(); ++j) {
        const uint32_t pos = first_key_ + j;
        const uint64_t page = kv.pages ? kv.pages[pos / kv.block_rows] : 0;
        const uint64_t row = uint64_t{head} * kv.block_rows + pos % kv.block_rows;
        uint8_t* block = cache.data() + page * kv.block_bytes;
        std::memcpy(block + 2 * row * kv.k_stride, key(head, j), 2 * c.qk_head_dim);
        std::memcpy(block + kv.v_begin + 2 * row * kv.v_stride, value(head, j), 2 * c.v_head_dim);
      }
    return cache;
  }
  /// A draft's block as it lies on the device; NaN beyond its rows.
  void set_block() {
    const KernelCase& c = measured_;
    cuda::KvView& block = params_.block;
    block.block_rows = (c.num_tokens + cuda::kTileKeys - 1) / cuda::kTileKeys * cuda::kTileKeys;
    block.k_stride = c.qk_head_dim + 8;
    block.v_stride = c.v_head_dim + 8;
    const uint64_t num_rows = uint64_t{c.num_kv_heads} * block.block_rows;
    block.v_begin = (2 * num_rows * block.k_stride + 15) / 16 * 16;
    block.block_bytes = (block.v_begin + 2 * num_rows * block.v_stride + 15) / 16 * 16;
    std::vector<uint8_t> bytes(block.block_bytes, 0xff);
    for (uint32_t head = 0; head < c.num_kv_heads; ++head)
      for (uint32_t token = 0; token < c.num_tokens; ++token) {
        const uint64_t row = uint64_t{head} * block.block_rows + token;
        const uint32_t j = num_cached() + token;
        std::memcpy(&bytes[2 * row * block.k_stride], key(head, j), 2 * c.qk_head_dim);
        std::memcpy(&bytes[block.v_begin + 2 * row * block.v_stride], value(head, j), 2 * c.v_head_dim);
      }
    block.blocks = upload(bytes);
    params_.num_block_rows = c.num_tokens;
  }
  const bf16_t* key(uint32_t head, uint32_t j) const {
    return keys_.data() + (uint64_t{head} * num_stored_ + j) * measured_.qk_head_dim;
  }
  const bf16_t* value(uint32_t head, uint32_t j) const {
    return values_.data() + (uint64_t{head} * num_stored_ + j) * measured_.v_head_dim;
  }

  void set_params() {
    const KernelCase& c = measured_;
    params_.q = {upload(q_), num_heads() * c.qk_head_dim};
    params_.out = make_out(c.num_tokens, num_heads() * c.v_head_dim);
    params_.position = upload(std::vector<uint32_t>{position_});
    params_.sink_logits = upload(std::vector<float>(num_heads(), kSinkLogit));
    params_.num_rows = c.num_tokens;
    params_.num_q_heads = num_heads();
    params_.num_kv_heads = c.num_kv_heads;
    params_.qk_head_dim = c.qk_head_dim;
    params_.v_head_dim = c.v_head_dim;
    params_.scale = 1.0f / std::sqrt(static_cast<float>(c.qk_head_dim));
    params_.window_tokens = c.window_tokens;
    params_.split_keys = c.split_keys;
    params_.max_context = layout_.options().max_context;
    if (is_draft()) set_block();
    params_.partials = static_cast<float*>(
        device_->allocate(cuda::attention_partial_floats(params_) * sizeof(float)));
  }

  /// Stored keys up to the last that a token sees.
  uint32_t num_seen(uint32_t token) const {
    return is_draft() ? num_stored_ : measured_.num_keys + token;
  }

  void aim(uint32_t at) override { params_.kv = view(place(at), device_pages_); }

  /// Scores: qk_head_dim additions of exact products; scale, log2(e) and their product rounded, as
  /// is the product with the score; the difference to the largest. A weight: 2^x to 2^-22, then
  /// BF16; one factor for its chunk, each later chunk of its split and the split: each 2^x of a
  /// rounded difference, and a product and an addition in both sums.
  Bounded expected(uint32_t /*place*/, uint32_t token, uint32_t column) override {
    constexpr double kPower = 0x1p-22;
    const KernelCase& c = measured_;
    const uint32_t head = column / c.v_head_dim, kv_head = head / c.num_q_per_kv;
    const uint32_t first = c.window_tokens ? std::min(token, num_cached()) : 0;
    if (const uint32_t row = token * num_heads() + head; row != reference_row_) {
      reference_row_ = row;
      reference_ = ReferenceHead(q_.data() + uint64_t{row} * c.qk_head_dim, key(kv_head, first),
                                 num_seen(token) - first, c.qk_head_dim,
                                 double{params_.scale}, double{kSinkLogit});
    }
    const ReferenceHead& r = reference_;
    const Product y = r.weighted(value(kv_head, first), c.v_head_dim, column % c.v_head_dim);
    const double num_factors = params_.split_keys / cuda::kChunkKeys + 2.0;
    const double num_splits = cuda::max_attention_splits(params_);
    const double sums = (cuda::kChunkKeys + num_factors + num_splits) * kProductSumUnit;
    const double factors =
        num_factors * (kPower + r.range * 2 * kF32Unit + 2 * kProductSumUnit);
    const double relative =
        r.score_magnitude * (rounding_of(c.qk_head_dim, kProductSumUnit) + 4 * kF32Unit) +
        (r.range + r.max_abs) * 2 * kF32Unit + kPower + kBf16Unit + factors + sums;
    const double before = relative * (y.magnitude + std::abs(y.value)) * (1 + 2 * kBf16Unit);
    return {y.value, before + kBf16Unit * (std::abs(y.value) + before) + 0x1p-120};
  }

  const uint32_t position_, first_key_, num_stored_;
  const cuda::KvLayout layout_;
  const std::vector<bf16_t> q_, keys_, values_;
  std::vector<uint32_t> pages_;  // the last comes first
  uint32_t* device_pages_ = nullptr;
  ReferenceHead reference_;  // of the row that was asked for last
  uint32_t reference_row_ = ~0u;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_attention(const KernelCase& c, const KernelBenchOptions& options,
                                             std::unique_ptr<cuda::BenchDevice> device) {
  MIMO_RT_CHECK(c.format == "bf16", invalid_argument, kWhere,
                "format: expected bf16 keys and values, got '", c.format, "'");
  check_attention_case(c);
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxTokens);
  check_multiple("split_keys", c.split_keys, cuda::kChunkKeys);
  MIMO_RT_CHECK(c.window_tokens == 0 || c.window_tokens == c.num_keys, invalid_argument, kWhere,
                "window_tokens: expected 0 or num_keys ", c.num_keys, ", got ", c.window_tokens);
  check_at_most("num_keys", c.num_keys, 1u << 20);
  return std::make_unique<CudaAttention>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench

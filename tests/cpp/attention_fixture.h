// Random queries and caches for the CUDA attention kernels, and their float64 reference.
#pragma once

#include <cmath>
#include <numeric>
#include <utility>

#include "cuda/attention_params.h"
#include "expert_fixture.h"

namespace fixture {

struct AttentionShape {
  uint32_t num_rows, num_q_heads, num_kv_heads, qk_head_dim, v_head_dim;
  uint32_t position;  ///< of row 0
  uint32_t window_tokens, split_keys;
  uint32_t ring_rows = 0;  ///< 0: pages
  bool is_draft = false, has_sinks = false;
  uint32_t padding = 8;  ///< elements behind a row of the cache

  AttentionShape with_ring(uint32_t rows) const {
    AttentionShape shape = *this;
    shape.ring_rows = rows;
    return shape;
  }
  AttentionShape with_sinks() const {
    AttentionShape shape = *this;
    shape.has_sinks = true;
    return shape;
  }
  AttentionShape as_draft() const {
    AttentionShape shape = *this;
    shape.is_draft = true;
    return shape;
  }
  AttentionShape without_padding() const {
    AttentionShape shape = *this;
    shape.padding = 0;
    return shape;
  }
};

enum class Values : uint8_t {
  random,
  equal_scores,  ///< q is 0; values are small integers
  selecting,     ///< key j scores high where dim j % qk_head_dim of q is set; values as above
};

/// Values and the error that the kernel may make.
struct Bounded {
  double value = 0, bound = 0;
};

/// One call. Memory that no row sees holds NaN.
struct Attention {
  static constexpr bf16_t kNan = 0xffff;
  static constexpr uint32_t kPageRows = 64;
  AttentionShape shape;
  AlignedRows<bf16_t> q;
  KernelVector<float> sinks;
  KernelVector<uint8_t> cache, block;  // with 16 bytes to spare for alignment
  uint32_t first_row = 0, num_call_rows = 0;  // of a draft's block, when not all are in the call
  KernelVector<uint32_t> pages, position;
  KernelVector<float> partials;

  Attention(const AttentionShape& attention_shape, Values kind, uint32_t seed)
      : shape(attention_shape),
        q(shape.num_rows, shape.num_q_heads * shape.qk_head_dim, 0),
        position(1, shape.position) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const uint32_t num_pages = shape.ring_rows ? 1 : (end() + kPageRows - 1) / kPageRows;
    pages.resize(num_pages);
    std::iota(pages.begin(), pages.end(), 1u);  // page 0 belongs to somebody else
    std::shuffle(pages.begin(), pages.end(), random);
    cache.assign((num_pages + 1) * view(cache, rows()).block_bytes + 16, 0xff);
    block.assign(view(block, kPageRows).block_bytes + 16, 0xff);
    const uint32_t num_keys = end() - begin();
    for (uint32_t j = 0; j < num_keys; ++j) fill_key(begin() + j, false, kind, random);
    for (uint32_t j = 0; shape.is_draft && j < shape.num_rows; ++j)
      fill_key(j, true, kind, random);
    for (uint32_t r = 0; r < shape.num_rows; ++r)
      for (uint32_t h = 0; h < shape.num_q_heads; ++h) {
        const uint32_t wanted = random() % shape.qk_head_dim;
        for (uint32_t d = 0; d < shape.qk_head_dim; ++d)
          q.at(r, h * shape.qk_head_dim + d) = f32_to_bf16(
              kind == Values::random ? 2 * normal(random)
                                     : kind == Values::selecting && d == wanted ? 1024.0f : 0.0f);
      }
    for (uint32_t h = 0; shape.has_sinks && h < shape.num_q_heads; ++h)
      sinks.push_back(kind == Values::random ? 2 * normal(random) : 0.0f);
  }

  uint32_t rows() const { return shape.ring_rows ? shape.ring_rows : kPageRows; }
  uint32_t end() const { return shape.position + (shape.is_draft ? 0 : shape.num_rows); }
  uint32_t begin() const { return std::min(seen(0).first, end()); }

  /// Positions of the cache that row r sees.
  std::pair<uint32_t, uint32_t> seen(uint32_t r) const {
    const uint32_t pos_end = shape.position + r + 1, window = shape.window_tokens;
    const uint32_t last = shape.is_draft ? shape.position : pos_end;
    return {std::min(window && pos_end > window ? pos_end - window : 0, last), last};
  }

  cuda::KvView view(const KernelVector<uint8_t>& bytes, uint32_t block_rows) const {
    cuda::KvView kv;
    kv.blocks = Experts::aligned(const_cast<KernelVector<uint8_t>&>(bytes));
    kv.block_rows = block_rows;
    kv.k_stride = shape.qk_head_dim + shape.padding;
    kv.v_stride = shape.v_head_dim + shape.padding;
    kv.v_begin = uint64_t{2} * shape.num_kv_heads * block_rows * kv.k_stride;
    kv.block_bytes = kv.v_begin + uint64_t{2} * shape.num_kv_heads * block_rows * kv.v_stride;
    return kv;
  }
  const bf16_t* key(uint32_t head, uint32_t pos, bool is_block, bool is_value) const {
    const cuda::KvView kv = is_block ? view(block, kPageRows) : view(cache, rows());
    const uint32_t stride = is_value ? kv.v_stride : kv.k_stride;
    const uint64_t page = is_block || shape.ring_rows ? 0 : pages[pos / kPageRows];
    return reinterpret_cast<const bf16_t*>(kv.blocks + page * kv.block_bytes +
                                           (is_value ? kv.v_begin : 0)) +
           (uint64_t{head} * kv.block_rows + pos % kv.block_rows) * stride;
  }
  bf16_t* key(uint32_t head, uint32_t pos, bool is_block, bool is_value) {
    return const_cast<bf16_t*>(std::as_const(*this).key(head, pos, is_block, is_value));
  }

  cuda::AttentionParams params(AlignedRows<bf16_t>& out) {
    cuda::AttentionParams p;
    p.q = {q.data, q.stride};
    p.out = {out.data, out.stride};
    p.kv = view(cache, rows());
    if (!shape.ring_rows) p.kv.pages = pages.data();
    if (shape.is_draft) {
      p.block = view(block, kPageRows);
      p.num_block_rows = shape.num_rows;
      p.first_row = first_row;
      p.q.data += first_row * q.stride;
    }
    p.position = position.data();
    p.sink_logits = shape.has_sinks ? sinks.data() : nullptr;
    p.num_rows = num_call_rows ? num_call_rows : shape.num_rows;
    p.num_q_heads = shape.num_q_heads;
    p.num_kv_heads = shape.num_kv_heads;
    p.qk_head_dim = shape.qk_head_dim;
    p.v_head_dim = shape.v_head_dim;
    p.scale = 1.0f / std::sqrt(static_cast<float>(shape.qk_head_dim));
    p.window_tokens = shape.window_tokens;
    p.split_keys = shape.split_keys;
    p.max_context = shape.position + shape.num_rows;
    partials.assign(cuda::attention_partial_floats(p) + 4, NAN);
    const auto address = reinterpret_cast<uintptr_t>(partials.data());
    p.partials = partials.data() + (16 - address % 16) % 16 / 4;
    return p;
  }

  /// out[v_head_dim] of one row and q head. `extra_keys`: how many more keys than it should the row
  /// sees at the far end of its window (negative: less), for controls.
  std::vector<Bounded> reference(uint32_t r, uint32_t head, int extra_keys = 0) const;

 private:
  void fill_key(uint32_t pos, bool is_block, Values kind, std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (uint32_t head = 0; head < shape.num_kv_heads; ++head) {
      for (uint32_t d = 0; d < shape.qk_head_dim; ++d)
        key(head, pos, is_block, false)[d] = f32_to_bf16(
            kind != Values::selecting ? normal(random) : d == pos % shape.qk_head_dim ? 64.0f : 0);
      for (uint32_t d = 0; d < shape.v_head_dim; ++d)
        key(head, pos, is_block, true)[d] =
            f32_to_bf16(kind == Values::random ? normal(random)
                                               : static_cast<float>(random() % 17) - 8.0f);
    }
  }
};

/// Bound. Scores: qk_head_dim products, exact, and as many additions; scale, log2(e) and their
/// product rounded, as is the product with the score; the difference to the largest. A weight: 2^x
/// to 2^-22, then BF16. Its chunk passes through one factor of its own, one for each later chunk of
/// its split and one for the split: each 2^x of a rounded difference, and a product and an addition
/// in both sums. Numerator and denominator use the same weights.
inline std::vector<Bounded> Attention::reference(uint32_t r, uint32_t head, int extra_keys) const {
  constexpr double kSum = 0x1p-23, kFloat = 0x1p-24, kBf16 = 0x1p-8, kPower = 0x1p-22;
  const uint32_t kv_head = head / (shape.num_q_heads / shape.num_kv_heads);
  auto [first, last] = seen(r);
  first = static_cast<uint32_t>(static_cast<int>(first) - extra_keys);
  const uint32_t num_keys = last - first + (shape.is_draft ? shape.num_rows : 0);
  const double scale = 1.0 / std::sqrt(double{static_cast<double>(shape.qk_head_dim)});
  struct Weight {
    const bf16_t* v;
    double score, weight, error;
  };
  std::vector<Weight> weights(num_keys);
  double largest = shape.has_sinks ? sinks[head] : -INFINITY, smallest = INFINITY;
  for (uint32_t j = 0; j < num_keys; ++j) {
    const bool is_block = j >= last - first;
    const uint32_t pos = is_block ? j - (last - first) : first + j;
    const bf16_t* k = key(kv_head, pos, is_block, false);
    double score = 0, magnitude = 0;
    for (uint32_t d = 0; d < shape.qk_head_dim; ++d) {
      const double product =
          double{bf16_to_f32(q.at(r, head * shape.qk_head_dim + d))} * double{bf16_to_f32(k[d])};
      score += product;
      magnitude += std::abs(product);
    }
    const double sum_error = shape.qk_head_dim * kSum / (1 - shape.qk_head_dim * kSum);
    weights[j] = {key(kv_head, pos, is_block, true), score * scale, 0,
                  scale * magnitude * sum_error + std::abs(score) * scale * 4 * kFloat};
    largest = std::max(largest, score * scale);
    smallest = std::min(smallest, score * scale);
  }
  const double range = shape.has_sinks ? largest - std::min(smallest, double{sinks[head]})
                                       : largest - smallest;
  const double num_factors = shape.split_keys / cuda::kChunkKeys + 2;
  const double num_splits = double{cuda::kTileKeys} + num_keys / shape.split_keys + 2;
  const double factors = num_factors * (kPower + range * 2 * kFloat + 2 * kSum);
  const double sums = (cuda::kChunkKeys + num_factors + num_splits) * kSum;
  double total = shape.has_sinks ? std::exp(sinks[head] - largest) : 0.0;
  double total_error = total * (std::abs(largest) * 4 * kFloat + kPower + sums);
  for (Weight& w : weights) {
    w.weight = std::exp(w.score - largest);
    w.error += (range + std::abs(largest)) * 2 * kFloat + kPower + kBf16 + factors + sums;
    total += w.weight;
    total_error += w.weight * w.error;
  }
  std::vector<Bounded> out(shape.v_head_dim);
  for (uint32_t d = 0; d < shape.v_head_dim; ++d) {
    double error = 0;
    for (const Weight& w : weights) {
      const double v = double{bf16_to_f32(w.v[d])};
      out[d].value += w.weight * v / total;
      error += w.weight * w.error * std::abs(v);
    }
    error = (error + total_error * std::abs(out[d].value)) / total * (1 + 2 * kBf16);
    out[d].bound = error + kBf16 * (std::abs(out[d].value) + error) + 0x1p-120;
  }
  return out;
}

}  // namespace fixture

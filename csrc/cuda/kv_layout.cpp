#include "cuda/kv_layout.h"

#include <algorithm>

#include "core/checks.h"
#include "kv/kv_cache.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "cuda.KvLayout";
constexpr uint64_t kAlignment = 256;
constexpr uint32_t kRowPadding = 8;
constexpr uint64_t kMaxPages = uint64_t{1} << 31;
static_assert(KvLayout::kPageTokens % kTileKeys == 0 && KvCache::kRingStep % kTileKeys == 0);

uint64_t round_to(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

}  // namespace

KvLayout::KvLayout(const std::vector<LayerConfig>& layers, const Options& options)
    : options_(options) {
  const auto check_positive = [](const char* name, uint32_t value) {
    MIMO_RT_CHECK(value != 0, invalid_argument, kWhere, name, ": expected > 0, got 0");
  };
  check_positive("max_context", options.max_context);
  check_positive("max_step_tokens", options.max_step_tokens);
  check_positive("num_seqs", options.num_seqs);
  const uint64_t num_pages = uint64_t{pages_per_seq()} * options.num_seqs;
  MIMO_RT_CHECK(num_pages < kMaxPages, capacity, kWhere, "pages of all sequences: expected < ",
                kMaxPages, ", got ", num_pages, ". Lower max_context or num_seqs.");
  for (const LayerConfig& layer : layers) add_layer(layer);
}

uint32_t KvLayout::pages_per_seq() const {
  return static_cast<uint32_t>(round_to(options_.max_context, kPageTokens) / kPageTokens);
}

void KvLayout::add_layer(const LayerConfig& layer) {
  Layer added{bytes_, {}, layer.window_tokens != 0};
  KvView& view = added.view;
  const uint64_t ring = std::min<uint64_t>(uint64_t{layer.window_tokens} + options_.max_step_tokens,
                                           options_.max_context);
  view.block_rows =
      added.is_ring ? static_cast<uint32_t>(round_to(ring, KvCache::kRingStep)) : kPageTokens;
  view.k_stride = layer.qk_head_dim + kRowPadding;
  view.v_stride = layer.v_head_dim + kRowPadding;
  const uint64_t num_rows = uint64_t{layer.num_kv_heads} * view.block_rows;
  view.v_begin = round_to(2 * num_rows * view.k_stride, kAlignment);
  view.block_bytes = view.v_begin + round_to(2 * num_rows * view.v_stride, kAlignment);
  bytes_ += view.block_bytes * (added.is_ring ? options_.num_seqs : num_pages());
  layers_.push_back(added);
}

KvView KvLayout::view(uint32_t layer_idx, const uint8_t* device, const uint32_t* pages) const {
  const Layer& layer = layers_[layer_idx];
  KvView view = layer.view;
  view.blocks = device + layer.begin;
  view.pages = layer.is_ring ? nullptr : pages;
  return view;
}

}  // namespace mimo_rt::cuda

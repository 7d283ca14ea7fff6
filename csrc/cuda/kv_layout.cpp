#include "cuda/kv_layout.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/checks.h"
#include "core/draft_layer.h"
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

KvLayout::KvLayout(const std::vector<LayerConfig>& layers, const Options& options,
                   const DraftConfig* draft)
    : options_(options), num_target_layers_(static_cast<uint32_t>(layers.size())) {
  const auto check_positive = [](const char* name, uint32_t value) {
    MIMO_RT_CHECK(value != 0, invalid_argument, kWhere, name, ": expected > 0, got 0");
  };
  check_positive("max_context", options.max_context);
  check_positive("max_step_tokens", options.max_step_tokens);
  check_positive("num_seqs", options.num_seqs);
  const uint64_t num_pages = uint64_t{pages_per_seq()} * options.num_seqs;
  MIMO_RT_CHECK(num_pages < kMaxPages, capacity, kWhere, "pages of all sequences: expected < ",
                kMaxPages, ", got ", num_pages, ". Lower max_context or num_seqs.");
  for (const LayerConfig& layer : layers) add_layer(layer, options.max_step_tokens);
  if (draft) add_draft(*draft);
  add_tables();
}

uint32_t KvLayout::pages_per_seq() const {
  return static_cast<uint32_t>(round_to(options_.max_context, kPageTokens) / kPageTokens);
}

void KvLayout::set_heads(KvView& view, const LayerConfig& layer) {
  view.k_stride = layer.qk_head_dim + kRowPadding;
  view.v_stride = layer.v_head_dim + kRowPadding;
  const uint64_t num_rows = uint64_t{layer.num_kv_heads} * view.block_rows;
  view.v_begin = round_to(2 * num_rows * view.k_stride, kAlignment);
  view.block_bytes = view.v_begin + round_to(2 * num_rows * view.v_stride, kAlignment);
}

/// Rings are as long for any max_context: so the heads of a layer are as far apart in all caches of a model, and a step
/// may have rows of several.
void KvLayout::add_layer(const LayerConfig& layer, uint32_t step_rows) {
  Layer added{bytes_, {}, layer.window_tokens != 0};
  const uint64_t ring = round_to(uint64_t{layer.window_tokens} + step_rows, KvCache::kRingStep);
  added.view.block_rows = added.is_ring ? static_cast<uint32_t>(ring) : kPageTokens;
  set_heads(added.view, layer);
  bytes_ += added.view.block_bytes * (added.is_ring ? options_.num_seqs : num_pages());
  layers_.push_back(added);
}

void KvLayout::add_draft(const DraftConfig& draft) {
  const uint32_t pending =
      options_.max_step_tokens + draft.block_size + KvCache::kMaxPendingContext;
  for (uint32_t l = 0; l < draft.num_layers; ++l) add_layer(draft_layer(draft, l), pending);
  block_begin_ = bytes_;
  block_.block_rows = static_cast<uint32_t>(round_to(draft.block_size, kTileKeys));
  set_heads(block_, draft_layer(draft, 0));
  bytes_ += block_.block_bytes;
  features_begin_ = bytes_;
  features_.ring_rows = static_cast<uint32_t>(
      round_to(std::min(pending, options_.max_context), KvCache::kRingStep));
  features_.width = static_cast<uint32_t>(draft.target_layer_ids.size()) * draft.hidden_size;
  bytes_ += round_to(2 * uint64_t{options_.num_seqs} * features_.ring_rows * features_.width,
                     kAlignment);
}

void KvLayout::add_tables() {
  views_begin_ = bytes_;
  bytes_ += round_to(sizeof(KvView) * options_.num_seqs * layers_.size(), kAlignment);
  pages_begin_ = bytes_;
  bytes_ += round_to(sizeof(uint32_t) * uint64_t{num_pages()}, kAlignment);
}

KvView KvLayout::view(uint32_t layer_idx, uint32_t seq_idx, const uint8_t* device) const {
  const Layer& layer = layers_[layer_idx];
  KvView view = layer.view;
  view.blocks = device + layer.begin;
  if (layer.is_ring)
    view.blocks += seq_idx * view.block_bytes;
  else
    view.pages = reinterpret_cast<const uint32_t*>(device + pages_begin_) + uint64_t{seq_idx} * pages_per_seq();
  return view;
}

KvSequence KvLayout::sequence(uint32_t seq_idx, uint8_t* device) const {
  KvSequence sequence{reinterpret_cast<const KvView*>(device + views_begin_) + seq_idx * layers_.size(), features_};
  if (features_.width == 0) return sequence;
  sequence.features.rows = reinterpret_cast<uint16_t*>(device + features_begin_) +
                           uint64_t{seq_idx} * features_.ring_rows * features_.width;
  return sequence;
}

std::vector<uint8_t> KvLayout::tables(const uint8_t* device) const {
  std::vector<KvView> views;
  for (uint32_t s = 0; s < options_.num_seqs; ++s)
    for (uint32_t l = 0; l < layers_.size(); ++l) views.push_back(view(l, s, device));
  std::vector<uint32_t> pages(num_pages());
  std::iota(pages.begin(), pages.end(), 0u);
  std::vector<uint8_t> tables(bytes_ - views_begin_);
  std::memcpy(tables.data(), views.data(), sizeof(KvView) * views.size());
  std::memcpy(tables.data() + (pages_begin_ - views_begin_), pages.data(), sizeof(uint32_t) * pages.size());
  return tables;
}

KvView KvLayout::block_view(const uint8_t* device) const {
  KvView view = block_;
  view.blocks = device + block_begin_;
  return view;
}

}  // namespace mimo_rt::cuda

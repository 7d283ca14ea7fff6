// One private anonymous mapping: page after page with the keys and values of all full layers, then
// sequence after sequence with the rings of all window layers, then the feature rings. The kernel
// backs memory when it is first written, so a large max_context costs address space, not memory,
// until a sequence grows that long; what a sequence uses of its pages lies together and fills huge pages.
#include "kv/kv_cache.h"

#include "core/checks.h"
#include "core/draft_layer.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "KvCache";
constexpr uint64_t kAlignment = 64;  // bytes; starts of layers, pages and rings

uint64_t align_up(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Where a layer's keys and values lie. A *block*: its part of a page (full layers) or its ring
/// (window layers).
struct LayerLayout {
  uint64_t begin = 0;         ///< of block 0: bytes from the start of the mapping
  uint64_t block_stride = 0;  ///< bytes from one block to the next
  uint64_t block_bytes = 0;   ///< K of all heads, then V of all heads
  uint64_t v_begin = 0;       ///< bytes from the start of a block
  uint32_t block_rows = 0;   ///< per head
  uint32_t window_tokens = 0;  ///< 0: full attention
  uint32_t ring_rows = 0;      ///< 0: pages
  uint32_t num_kv_heads = 0, qk_head_dim = 0, v_head_dim = 0;

  uint64_t k_offset(uint64_t block, uint32_t head, uint32_t row) const {
    const uint64_t element = (uint64_t{head} * block_rows + row) * qk_head_dim;
    return begin + block * block_stride + 2 * element;
  }
  uint64_t v_offset(uint64_t block, uint32_t head, uint32_t row) const {
    const uint64_t element = (uint64_t{head} * block_rows + row) * v_head_dim;
    return begin + block * block_stride + v_begin + 2 * element;
  }
};

/// A ring as long as the context never wraps: no need to be longer.
uint32_t rounded_ring(uint64_t rows, uint32_t max_context) {
  return static_cast<uint32_t>((std::min(rows, uint64_t{max_context}) + KvCache::kRingStep - 1) /
                               KvCache::kRingStep * KvCache::kRingStep);
}

/// `step_rows`: the most positions whose keys and values one step may write.
LayerLayout layout_of(const LayerConfig& layer, uint64_t step_rows, uint32_t max_context) {
  LayerLayout layout;
  layout.num_kv_heads = layer.num_kv_heads;
  layout.qk_head_dim = layer.qk_head_dim;
  layout.v_head_dim = layer.v_head_dim;
  layout.window_tokens = layer.window_tokens;
  if (layer.window_tokens) layout.ring_rows = rounded_ring(layer.window_tokens + step_rows, max_context);
  layout.block_rows = layout.ring_rows ? layout.ring_rows : KvCache::kPageTokens;
  const uint64_t rows = uint64_t{layer.num_kv_heads} * layout.block_rows;
  layout.v_begin = align_up(2 * rows * layer.qk_head_dim);
  layout.block_bytes = layout.v_begin + align_up(2 * rows * layer.v_head_dim);
  return layout;
}

}  // namespace

struct KvCache::Impl {
  std::vector<KvCache*> parts;          // of a joint cache, which has sizes but no memory
  Options options;
  std::vector<LayerLayout> layers;      // the target's, then the draft's
  uint64_t features_begin = 0;          // bytes from the start of the mapping
  uint64_t feature_bytes = 0;           // of one row
  uint32_t feature_rows = 0;            // of one sequence
  uint32_t pages_per_seq = 0;
  std::vector<uint32_t> page_table;       // [num_seqs, pages_per_seq]
  std::vector<uint32_t> num_pages;        // [num_seqs]
  std::vector<uint32_t> reserved_tokens;  // [num_seqs]
  std::vector<uint32_t> free_pages;       // a stack: the page freed last is reused first
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  uint64_t page_bytes = 0;  // of them, from the start: the pages
  std::shared_ptr<KvStore> store;
  uint64_t store_bytes = 0;  // of the last one

  ~Impl() {
    if (data) munmap(data, bytes);
  }

  void add_bytes(uint64_t block_bytes, uint64_t num_blocks) {
    uint64_t more = 0;
    const bool overflow = __builtin_mul_overflow(block_bytes, num_blocks, &more) ||
                          __builtin_add_overflow(bytes, more, &bytes) || bytes > (uint64_t{1} << 56);
    MIMO_RT_CHECK(!overflow, out_of_memory, kWhere, "max_context ", options.max_context,
                  " with ", options.num_seqs, " sequences: no address space is that large. Lower max_context.");
  }

  void add_layer(const LayerConfig& layer, uint64_t step_rows) {
    layers.push_back(layout_of(layer, step_rows, options.max_context));
  }

  /// Places the blocks of all full layers, or of all window layers, side by side.
  void place_layers(bool are_rings, uint64_t num_blocks) {
    uint64_t stride = 0;
    for (LayerLayout& layer : layers) {
      if ((layer.ring_rows != 0) != are_rings) continue;
      layer.begin = bytes + stride;
      stride += layer.block_bytes;
    }
    for (LayerLayout& layer : layers)
      if ((layer.ring_rows != 0) == are_rings) layer.block_stride = stride;
    add_bytes(stride, num_blocks);
  }

  void plan_layout(const ModelConfig& config, const DraftConfig* draft) {
    for (const LayerConfig& layer : config.layers) add_layer(layer, options.max_step_tokens);
    // The features of pending positions must outlive the rows that steps capture before their turn comes. A step makes
    // context for as many positions as have features, at most.
    const uint64_t pending =
        uint64_t{options.max_step_tokens} + (draft ? draft->block_size : 0) + kMaxPendingContext;
    for (uint32_t n = 0; draft && n < draft->num_layers; ++n) add_layer(draft_layer(*draft, n), pending);
    place_layers(false, uint64_t{pages_per_seq} * options.num_seqs);
    page_bytes = bytes;
    place_layers(true, options.num_seqs);
    if (!draft) return;
    feature_rows = rounded_ring(pending, options.max_context);
    feature_bytes = 2 * uint64_t{draft->target_layer_ids.size()} * draft->hidden_size;
    features_begin = bytes;
    add_bytes(align_up(feature_rows * feature_bytes), options.num_seqs);
  }

  void map() {
    bytes = std::max(bytes, kAlignment);
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MIMO_RT_CHECK(mapped != MAP_FAILED, out_of_memory, kWhere, "cannot map ", bytes,
                  " bytes for keys and values. Lower max_context (now ", options.max_context,
                  ") or the number of sequences (now ", options.num_seqs, ").");
    data = static_cast<uint8_t*>(mapped);
    // A wish: small pages work too. Not for rings, of which a short sequence uses a row here and there.
    madvise(data, page_bytes, MADV_HUGEPAGE);
  }

  /// The block and the row in it that hold `pos`.
  uint64_t block_of(const LayerLayout& layer, uint32_t seq_idx, uint32_t pos) const {
    if (layer.ring_rows) return seq_idx;
    return page_table[uint64_t{seq_idx} * pages_per_seq + pos / kPageTokens];
  }
};

KvCache::KvCache(const ModelConfig& config, const Options& options, const DraftConfig* draft)
    : impl_(std::make_unique<Impl>()) {
  MIMO_RT_CHECK(options.max_context > 0, invalid_argument, kWhere,
                "max_context: expected > 0, got 0");
  MIMO_RT_CHECK(options.max_step_tokens > 0, invalid_argument, kWhere,
                "max_step_tokens: expected > 0, got 0");
  MIMO_RT_CHECK(options.num_seqs > 0, invalid_argument, kWhere, "num_seqs: expected > 0, got 0");
  Impl& impl = *impl_;
  impl.options = options;
  impl.pages_per_seq = static_cast<uint32_t>(
      (uint64_t{options.max_context} + kPageTokens - 1) / kPageTokens);
  const uint64_t total_pages = uint64_t{impl.pages_per_seq} * options.num_seqs;
  MIMO_RT_CHECK(total_pages < 0xffffffffu, out_of_memory, kWhere, "page table: expected < 2^32 ",
                "pages, got ", total_pages, ". Lower max_context or num_seqs.");
  impl.plan_layout(config, draft);
  impl.map();
  impl.page_table.resize(total_pages);
  impl.num_pages.resize(options.num_seqs);
  impl.reserved_tokens.resize(options.num_seqs);
  impl.free_pages.resize(total_pages);
  for (uint64_t i = 0; i < total_pages; ++i)  // page 0 on top
    impl.free_pages[i] = static_cast<uint32_t>(total_pages - 1 - i);
}

KvCache::KvCache(std::vector<KvCache*> parts) : impl_(std::make_unique<Impl>()) {
  MIMO_RT_CHECK(!parts.empty(), invalid_argument, kWhere, "parts: expected some, got none");
  for (const KvCache* part : parts)
    MIMO_RT_CHECK(part->num_seqs() == 1 && part->num_layers() == parts[0]->num_layers(), invalid_argument, kWhere,
                  "parts: expected caches of one sequence and of the same layers");
  Impl& impl = *impl_;
  impl.options = {.max_context = 0, .max_step_tokens = ~0u, .num_seqs = static_cast<uint32_t>(parts.size())};
  for (const KvCache* part : parts) {
    impl.options.max_context = std::max(impl.options.max_context, part->max_context());
    impl.options.max_step_tokens = std::min(impl.options.max_step_tokens, part->max_step_tokens());
    impl.pages_per_seq = std::max(impl.pages_per_seq, part->impl_->pages_per_seq);
    impl.reserved_tokens.push_back(part->reserved_tokens(0));
  }
  impl.parts = std::move(parts);
}

KvCache::KvCache(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

std::span<KvCache* const> KvCache::parts() const { return impl_->parts; }

void KvCache::check_has_memory(const char* where) const {
  MIMO_RT_CHECK(impl_->parts.empty(), invalid_argument, where, "expected a cache with memory of its own, got a joint one");
}

void KvCache::reserve(uint32_t seq_idx, uint32_t num_tokens) {
  Impl& impl = *impl_;
  MIMO_RT_CHECK(seq_idx < num_seqs(), invalid_argument, "KvCache.reserve",
                "seq_idx: expected < ", num_seqs(), ", got ", seq_idx);
  check_has_memory("KvCache.reserve");
  MIMO_RT_CHECK(num_tokens <= max_context(), capacity, "KvCache.reserve",
                "sequence length: expected <= ", max_context(), " tokens, got ", num_tokens,
                ". Raise max_context.");
  // Every sequence's share of the pool covers max_context, so the stack cannot run empty here.
  const uint32_t needed = (num_tokens + kPageTokens - 1) / kPageTokens;
  uint32_t& held = impl.num_pages[seq_idx];
  for (; held < needed; ++held) {
    impl.page_table[uint64_t{seq_idx} * impl.pages_per_seq + held] = impl.free_pages.back();
    impl.free_pages.pop_back();
  }
  impl.reserved_tokens[seq_idx] = std::max(impl.reserved_tokens[seq_idx], num_tokens);
}

void KvCache::truncate(uint32_t seq_idx, uint32_t num_tokens) {
  Impl& impl = *impl_;
  MIMO_RT_CHECK(seq_idx < num_seqs(), invalid_argument, "KvCache.truncate",
                "seq_idx: expected < ", num_seqs(), ", got ", seq_idx);
  check_has_memory("KvCache.truncate");
  if (num_tokens >= impl.reserved_tokens[seq_idx]) return;
  const uint32_t needed = (num_tokens + kPageTokens - 1) / kPageTokens;
  uint32_t& held = impl.num_pages[seq_idx];
  while (held > needed) {
    --held;
    // The stack was sized for all pages: this cannot allocate.
    impl.free_pages.push_back(impl.page_table[uint64_t{seq_idx} * impl.pages_per_seq + held]);
  }
  impl.reserved_tokens[seq_idx] = num_tokens;
}

void KvCache::release_memory() noexcept {
  const std::vector<uint32_t>& reserved = impl_->reserved_tokens;
  if (std::any_of(reserved.begin(), reserved.end(), [](uint32_t count) { return count > 0; }))
    return;
  madvise(impl_->data, impl_->bytes, MADV_DONTNEED);
  if (impl_->store) impl_->store_bytes = impl_->store->bytes();
  impl_->store.reset();
}

bool KvCache::can_truncate(uint32_t stored_tokens, uint32_t num_tokens) const {
  if (num_tokens >= stored_tokens) return num_tokens == stored_tokens;
  return std::all_of(impl_->layers.begin(), impl_->layers.end(), [&](const LayerLayout& layer) {
    if (!layer.ring_rows) return true;
    // The next query sees positions from num_tokens - window + 1 on; rows survive for ring_rows.
    const uint64_t visible_end = uint64_t{num_tokens} + 1;
    const uint64_t first_needed =
        visible_end > layer.window_tokens ? visible_end - layer.window_tokens : 0;
    return stored_tokens <= first_needed + layer.ring_rows;
  });
}

uint16_t* KvCache::k_row(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx, uint32_t pos) {
  if (!impl_->parts.empty()) return impl_->parts[seq_idx]->k_row(layer_idx, 0, kv_head_idx, pos);
  const LayerLayout& layer = impl_->layers[layer_idx];
  const uint64_t block = impl_->block_of(layer, seq_idx, pos);
  const uint64_t offset = layer.k_offset(block, kv_head_idx, pos % layer.block_rows);
  return reinterpret_cast<uint16_t*>(impl_->data + offset);
}

uint16_t* KvCache::v_row(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx, uint32_t pos) {
  if (!impl_->parts.empty()) return impl_->parts[seq_idx]->v_row(layer_idx, 0, kv_head_idx, pos);
  const LayerLayout& layer = impl_->layers[layer_idx];
  const uint64_t block = impl_->block_of(layer, seq_idx, pos);
  const uint64_t offset = layer.v_offset(block, kv_head_idx, pos % layer.block_rows);
  return reinterpret_cast<uint16_t*>(impl_->data + offset);
}

uint32_t KvCache::segments(uint32_t layer_idx, uint32_t seq_idx, uint32_t kv_head_idx,
                           uint32_t pos_begin, uint32_t pos_end, KvSegment* out) const {
  if (!impl_->parts.empty())
    return impl_->parts[seq_idx]->segments(layer_idx, 0, kv_head_idx, pos_begin, pos_end, out);
  const LayerLayout& layer = impl_->layers[layer_idx];
  uint32_t num_segments = 0;
  for (uint32_t pos = pos_begin; pos < pos_end;) {
    const uint32_t row = pos % layer.block_rows;
    const uint32_t num_keys = std::min(layer.block_rows - row, pos_end - pos);
    const uint64_t block = impl_->block_of(layer, seq_idx, pos);
    const uint8_t* k = impl_->data + layer.k_offset(block, kv_head_idx, row);
    const uint8_t* v = impl_->data + layer.v_offset(block, kv_head_idx, row);
    out[num_segments++] = {reinterpret_cast<const uint16_t*>(k),
                           reinterpret_cast<const uint16_t*>(v), num_keys};
    pos += num_keys;
  }
  return num_segments;
}

uint16_t* KvCache::feature_row(uint32_t seq_idx, uint32_t pos) {
  if (!impl_->parts.empty()) return impl_->parts[seq_idx]->feature_row(0, pos);
  const Impl& impl = *impl_;
  const uint64_t ring_bytes = align_up(impl.feature_rows * impl.feature_bytes);
  const uint64_t offset = impl.features_begin + seq_idx * ring_bytes + pos % impl.feature_rows * impl.feature_bytes;
  return reinterpret_cast<uint16_t*>(impl.data + offset);
}

uint32_t KvCache::feature_rows(uint32_t seq_idx) const {
  return impl_->parts.empty() ? impl_->feature_rows : impl_->parts[seq_idx]->feature_rows(0);
}
uint32_t KvCache::max_segments() const { return std::max(impl_->pages_per_seq, 2u); }
uint32_t KvCache::max_context() const { return impl_->options.max_context; }
uint32_t KvCache::max_step_tokens() const { return impl_->options.max_step_tokens; }
uint32_t KvCache::num_seqs() const { return impl_->options.num_seqs; }
uint32_t KvCache::num_layers() const {
  return impl_->parts.empty() ? static_cast<uint32_t>(impl_->layers.size()) : impl_->parts[0]->num_layers();
}
uint32_t KvCache::reserved_tokens(uint32_t seq_idx) const {
  return impl_->reserved_tokens[seq_idx];
}
uint32_t KvCache::ring_rows(uint32_t layer_idx) const { return impl_->layers[layer_idx].ring_rows; }
uint64_t KvCache::bytes() const {
  const uint64_t store_bytes = impl_->store ? impl_->store->bytes() : impl_->store_bytes;
  return store_bytes ? store_bytes : impl_->bytes;
}
std::shared_ptr<KvStore>& KvCache::store() { return impl_->store; }

}  // namespace mimo_rt

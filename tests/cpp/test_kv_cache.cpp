// KvCache against a map from (layer, sequence, head, position) to a number.
#include "kv/kv_cache.h"

#include "check.h"

#include <unistd.h>

#include <fstream>
#include <map>
#include <set>
#include <tuple>

using namespace mimo_rt;

namespace {

// Layer 0: full, layer 1: window of 5 keys; head sizes differ.
ModelConfig two_layers() {
  ModelConfig config;
  config.num_layers = 2;
  config.layers.resize(2);
  for (LayerConfig& layer : config.layers) {
    layer.num_q_heads = 4;
    layer.num_kv_heads = 2;
    layer.qk_head_dim = 6;
    layer.v_head_dim = 4;
  }
  config.layers[1].window_tokens = 5;
  return config;
}

// Layer 0: window of 20 keys, layer 1: full; heads as in two_layers() but for their sizes.
DraftConfig two_draft_layers() {
  DraftConfig draft;
  draft.hidden_size = 10;
  draft.num_layers = 2;
  draft.num_q_heads = 4;
  draft.num_kv_heads = 2;
  draft.qk_head_dim = 6;
  draft.v_head_dim = 4;
  draft.block_size = 4;
  draft.window_tokens = {20, 0};
  draft.target_layer_ids = {1, 0, 3};
  return draft;
}

uint16_t value_of(uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t dim) {
  return static_cast<uint16_t>(((layer * 7 + seq) * 5 + head) * 1031 + pos * 13 + dim);
}

void write(KvCache& cache, uint32_t seq, uint32_t pos) {
  for (uint32_t layer = 0; layer < cache.num_layers(); ++layer)
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint32_t d = 0; d < 6; ++d)
        cache.k_row(layer, seq, head, pos)[d] = value_of(layer, seq, head, pos, d);
      for (uint32_t d = 0; d < 4; ++d)
        cache.v_row(layer, seq, head, pos)[d] = value_of(layer, seq, head, pos, 100 + d);
    }
}

/// Number of wrong elements in the segments of [begin, end).
uint32_t count_wrong(const KvCache& cache, uint32_t layer, uint32_t seq, uint32_t begin,
                     uint32_t end) {
  uint32_t wrong = 0;
  std::vector<KvSegment> segments(cache.max_segments());
  for (uint32_t head = 0; head < 2; ++head) {
    const uint32_t n = cache.segments(layer, seq, head, begin, end, segments.data());
    uint32_t pos = begin;
    for (uint32_t s = 0; s < n; ++s)
      for (uint32_t row = 0; row < segments[s].num_keys; ++row, ++pos) {
        for (uint32_t d = 0; d < 6; ++d)
          wrong += segments[s].k[row * 6 + d] != value_of(layer, seq, head, pos, d);
        for (uint32_t d = 0; d < 4; ++d)
          wrong += segments[s].v[row * 4 + d] != value_of(layer, seq, head, pos, 100 + d);
      }
    wrong += pos != end;
  }
  return wrong;
}

}  // namespace

TEST_CASE("segments return what was written, interleaved sequences") {
  KvCache cache(two_layers(), {.max_context = 300, .max_step_tokens = 8, .num_seqs = 3});
  // Sequences grow in turns, so their pages interleave in the pool.
  for (uint32_t pos = 0; pos < 300; ++pos)
    for (uint32_t seq = 0; seq < 3; ++seq) {
      cache.reserve(seq, pos + 1);
      write(cache, seq, pos);
    }
  for (uint32_t seq = 0; seq < 3; ++seq) {
    CHECK_EQ(count_wrong(cache, 0, seq, 0, 300), 0u);
    CHECK_EQ(count_wrong(cache, 0, seq, 63, 65), 0u);
    CHECK_EQ(count_wrong(cache, 1, seq, 300 - 13, 300), 0u);  // window + step - 1 rows are kept
  }
  CHECK(count_wrong(cache, 1, 0, 300 - 17, 300) > 0);  // control: the ring has forgotten row 283
  CHECK_EQ(cache.ring_rows(0), 0u);
  CHECK_EQ(cache.ring_rows(1), 16u);
}

TEST_CASE("a step may write all its rows before any is read") {
  // For every start: rows [pos, pos + 8) are written, then the first query reads its whole window.
  KvCache cache(two_layers(), {.max_context = 500, .max_step_tokens = 8, .num_seqs = 1});
  cache.reserve(0, 500);
  for (uint32_t pos = 0; pos + 8 <= 500; pos += 8) {
    for (uint32_t i = 0; i < 8; ++i) write(cache, 0, pos + i);
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t query = pos + i;
      CHECK_EQ(count_wrong(cache, 1, 0, query < 4 ? 0 : query - 4, query + 1), 0u);
    }
  }
}

TEST_CASE("no two rows of any layer, sequence, head overlap") {
  KvCache cache(two_layers(), {.max_context = 100, .max_step_tokens = 4, .num_seqs = 2});
  std::set<uintptr_t> bytes;
  uint64_t expected = 0;
  for (uint32_t seq = 0; seq < 2; ++seq) {
    cache.reserve(seq, 100);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      const uint32_t rows = layer ? cache.ring_rows(1) : 100;
      for (uint32_t head = 0; head < 2; ++head)
        for (uint32_t pos = 0; pos < rows; ++pos) {
          for (uint32_t d = 0; d < 6; ++d)
            bytes.insert(reinterpret_cast<uintptr_t>(cache.k_row(layer, seq, head, pos) + d));
          for (uint32_t d = 0; d < 4; ++d)
            bytes.insert(reinterpret_cast<uintptr_t>(cache.v_row(layer, seq, head, pos) + d));
          expected += 10;
        }
    }
  }
  CHECK_EQ(bytes.size(), expected);
}

TEST_CASE("truncate frees pages and keeps the rest") {
  KvCache cache(two_layers(), {.max_context = 256, .max_step_tokens = 8, .num_seqs = 2});
  cache.reserve(0, 256);
  for (uint32_t pos = 0; pos < 200; ++pos) write(cache, 0, pos);
  const uint16_t* freed = cache.k_row(0, 0, 0, 192);
  cache.truncate(0, 130);
  CHECK_EQ(cache.reserved_tokens(0), 130u);
  CHECK_EQ(count_wrong(cache, 0, 0, 0, 130), 0u);
  cache.reserve(1, 64);
  // Page 2 of sequence 0 still holds 128..129; the page freed last (the one of 192) is reused first.
  CHECK(cache.k_row(0, 1, 0, 0) == freed);
  cache.reserve(0, 200);
  for (uint32_t pos = 130; pos < 200; ++pos) write(cache, 0, pos);
  CHECK_EQ(count_wrong(cache, 0, 0, 0, 200), 0u);
}

TEST_CASE("memory goes back to the system once no sequence holds tokens") {
  KvCache cache(two_layers(), {.max_context = 256, .max_step_tokens = 8, .num_seqs = 2});
  cache.reserve(1, 1);
  write(cache, 1, 0);
  const uint16_t* row = cache.k_row(0, 1, 0, 0);
  const uint16_t stored = *row;
  CHECK(stored != 0);
  cache.release_memory();
  CHECK_EQ(*row, stored);  // control: a sequence holds it
  cache.truncate(1, 0);
  CHECK_EQ(*row, stored);
  cache.release_memory();
  CHECK_EQ(*row, 0);  // a fresh page of zeros
  cache.reserve(0, 200);
  for (uint32_t pos = 0; pos < 200; ++pos) write(cache, 0, pos);
  CHECK_EQ(count_wrong(cache, 0, 0, 0, 200), 0u);
}

TEST_CASE("memory follows what short sequences use") {
  ModelConfig config = two_layers();
  config.num_layers = 40;
  config.layers.resize(40, config.layers[1]);
  for (LayerConfig& layer : config.layers) layer.num_kv_heads = 8, layer.num_q_heads = 8, layer.qk_head_dim = 64;
  for (uint32_t l = 1; l < 40; ++l) config.layers[l].window_tokens = 128;
  KvCache cache(config, {.max_context = 100'000, .max_step_tokens = 512, .num_seqs = 8});
  const auto resident_bytes = [] {
    std::ifstream statm("/proc/self/statm");
    uint64_t total = 0, resident = 0;
    statm >> total >> resident;
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  };
  const uint64_t before = resident_bytes();
  for (uint32_t seq = 0; seq < 8; ++seq) {
    cache.reserve(seq, 1);
    for (uint32_t layer = 0; layer < 40; ++layer)
      for (uint32_t head = 0; head < 8; ++head) *cache.k_row(layer, seq, head, 0) = *cache.v_row(layer, seq, head, 0) = 1;
  }
  const uint64_t small_pages = 8 * 40 * 8 * 2 * uint64_t{4096}, huge_page = uint64_t{2} << 20;
  CHECK(resident_bytes() - before <= small_pages + 4 * huge_page);
}

TEST_CASE("can_truncate agrees with a simulated ring") {
  KvCache cache(two_layers(), {.max_context = 1000, .max_step_tokens = 8, .num_seqs = 1});
  const uint32_t ring = cache.ring_rows(1), window = 5;
  uint32_t num_false = 0;
  for (uint32_t stored = 0; stored <= 3 * ring; ++stored)
    for (uint32_t kept = 0; kept <= stored; ++kept) {
      std::map<uint32_t, uint32_t> holds;  // ring row -> position
      for (uint32_t pos = 0; pos < stored; ++pos) holds[pos % ring] = pos;
      bool all = true;
      for (uint32_t pos = kept + 1 > window ? kept + 1 - window : 0; pos < kept; ++pos)
        all &= holds[pos % ring] == pos;
      // Conservative only where nothing is needed from overwritten rows (kept = 0).
      if (kept > 1) CHECK_EQ(cache.can_truncate(stored, kept), all);
      if (cache.can_truncate(stored, kept)) CHECK(all);
      num_false += !all;
    }
  CHECK(num_false > 0);  // the cases where a ring has lost rows did occur
}

TEST_CASE("a draft's layers follow the target's") {
  const DraftConfig draft = two_draft_layers();
  const KvCache::Options options{.max_context = 400, .max_step_tokens = 8, .num_seqs = 2};
  KvCache cache(two_layers(), options, &draft);
  CHECK_EQ(cache.num_layers(), 4u);
  CHECK_EQ(cache.ring_rows(1), 16u);  // the target's rings are as without a draft
  CHECK_EQ(cache.ring_rows(2), 96u);  // window 20 + step 8 + block 4 + 64 pending
  CHECK_EQ(cache.ring_rows(3), 0u);
  CHECK_EQ(cache.feature_rows(), 80u);  // step 8 + block 4 + 64 pending, rounded up
  for (uint32_t pos = 0; pos < 400; ++pos)
    for (uint32_t seq = 0; seq < 2; ++seq) {
      cache.reserve(seq, pos + 1);
      write(cache, seq, pos);
    }
  for (uint32_t seq = 0; seq < 2; ++seq) {
    CHECK_EQ(count_wrong(cache, 0, seq, 0, 400), 0u);
    CHECK_EQ(count_wrong(cache, 2, seq, 400 - 96, 400), 0u);
    CHECK_EQ(count_wrong(cache, 3, seq, 0, 400), 0u);
  }
  CHECK(count_wrong(cache, 2, 0, 400 - 97, 400) > 0);  // control: the ring has forgotten row 303

  KvCache without(two_layers(), options);
  CHECK_EQ(without.feature_rows(), 0u);
  CHECK_EQ(without.num_layers(), 2u);
  // Per sequence: ring and 7 pages of 64 rows, K and V of 2 heads; 80 rows of 30 features.
  const uint64_t row = 2 * 2 * (6 + 4);
  CHECK_EQ(cache.bytes() - without.bytes(), 2 * (96 * row + 7 * 64 * row + 80 * 2 * 30));
}

TEST_CASE("features of the last positions are kept, apart from keys and values") {
  const DraftConfig draft = two_draft_layers();
  KvCache cache(two_layers(), {.max_context = 300, .max_step_tokens = 8, .num_seqs = 2}, &draft);
  const uint32_t rows = cache.feature_rows(), width = 30;
  for (uint32_t seq = 0; seq < 2; ++seq) {
    cache.reserve(seq, 300);
    for (uint32_t pos = 0; pos < 300; ++pos) {
      write(cache, seq, pos);
      for (uint32_t i = 0; i < width; ++i) cache.feature_row(seq, pos)[i] = value_of(9, seq, 3, pos, i);
    }
  }
  const auto num_wrong = [&](uint32_t seq, uint32_t begin) {
    uint32_t wrong = 0;
    for (uint32_t pos = begin; pos < 300; ++pos)
      for (uint32_t i = 0; i < width; ++i) wrong += cache.feature_row(seq, pos)[i] != value_of(9, seq, 3, pos, i);
    return wrong;
  };
  for (uint32_t seq = 0; seq < 2; ++seq) {
    CHECK_EQ(num_wrong(seq, 300 - rows), 0u);
    CHECK_EQ(num_wrong(seq, 300 - rows - 1), width);  // control: one row longer is one row wrong
    CHECK_EQ(count_wrong(cache, 3, seq, 0, 300), 0u);
  }
  KvCache small(two_layers(), {.max_context = 20, .max_step_tokens = 8, .num_seqs = 1}, &draft);
  CHECK_EQ(small.feature_rows(), 32u);  // the context never wraps
}

// What rounds and prefill do in turn, with the rows of context left pending as long as they may be: at every moment the
// features of all pending positions and the keys of every visible position are there.
TEST_CASE("no pending feature and no visible draft key is overwritten early") {
  const DraftConfig draft = two_draft_layers();
  const uint32_t max_step = 24, window = 20;
  KvCache cache(two_layers(), {.max_context = 4000, .max_step_tokens = max_step, .num_seqs = 1}, &draft);
  cache.reserve(0, 4000);
  std::map<uint32_t, uint32_t> features, keys;  // ring row -> position
  const auto lost = [&](uint32_t ring, uint32_t pending_limit) {
    uint32_t position = 0, num_context = 0, num_lost = 0;
    features.clear(), keys.clear();
    for (uint32_t i = 0; position + max_step < 4000; ++i) {
      const bool is_prefill = i % 97 > 90;
      const uint32_t rows = is_prefill ? max_step : i % 5 ? 1 : draft.block_size;
      if (is_prefill || rows > 1 || position - num_context + draft.block_size > pending_limit) {
        for (uint32_t pos = num_context; pos < position; ++pos) {
          num_lost += features[pos % ring] != pos;
          keys[pos % cache.ring_rows(2)] = pos;
        }
        num_context = position;
        for (uint32_t pos = position < window ? 0 : position - window + 1; pos < position; ++pos)
          num_lost += keys[pos % cache.ring_rows(2)] != pos;
      }
      for (uint32_t t = 0; t < rows; ++t) features[(position + t) % ring] = position + t;
      position += is_prefill ? rows : 1;  // no draft is ever accepted: rejected rows do the most harm
    }
    return num_lost;
  };
  CHECK_EQ(lost(cache.feature_rows(), KvCache::kMaxPendingContext), 0u);
  CHECK(lost(max_step - 1, KvCache::kMaxPendingContext) > 0);  // controls: a short ring, a long wait
}

TEST_CASE("can_truncate looks at a draft's rings too") {
  DraftConfig draft = two_draft_layers();
  draft.window_tokens = {200, 0};
  ModelConfig full = two_layers();
  full.layers[1].window_tokens = 0;
  const KvCache::Options options{.max_context = 1000, .max_step_tokens = 8, .num_seqs = 1};
  KvCache with(full, options, &draft), without(full, options);
  const uint32_t ring = with.ring_rows(2), window = 200;
  uint32_t num_false = 0;
  for (uint32_t stored = 0; stored <= 3 * ring; stored += 7)
    for (uint32_t kept = 2; kept <= stored; ++kept) {
      // Rows of the last `ring` positions are there; the anchor at `kept` sees (kept - window, kept).
      const bool all = stored <= ring || (kept + 1 > window ? kept + 1 - window : 0) >= stored - ring;
      CHECK_EQ(with.can_truncate(stored, kept), all);
      CHECK(without.can_truncate(stored, kept));
      num_false += !all;
    }
  CHECK(num_false > 0);
}

TEST_CASE("limits are errors") {
  const ModelConfig config = two_layers();
  CHECK_THROWS(invalid_argument, "max_context", KvCache(config, {.max_context = 0}));
  CHECK_THROWS(invalid_argument, "num_seqs", KvCache(config, {.max_context = 1, .num_seqs = 0}));
  CHECK_THROWS(invalid_argument, "max_step_tokens",
               KvCache(config, {.max_context = 1, .max_step_tokens = 0}));
  CHECK_THROWS(out_of_memory, "max_context",
               KvCache(config, {.max_context = 0xffffffffu, .num_seqs = 0xffffffffu}));
  KvCache cache(config, {.max_context = 100, .max_step_tokens = 1, .num_seqs = 1});
  cache.reserve(0, 70);
  CHECK_THROWS(capacity, "101", cache.reserve(0, 101));
  CHECK_EQ(cache.reserved_tokens(0), 70u);  // unchanged
  CHECK_THROWS(invalid_argument, "seq_idx", cache.reserve(1, 1));
  CHECK_THROWS(invalid_argument, "seq_idx", cache.truncate(1, 1));
}

CHECK_MAIN()

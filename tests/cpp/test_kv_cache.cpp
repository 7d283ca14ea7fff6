// KvCache against a map from (layer, sequence, head, position) to a number.
#include "kv/kv_cache.h"

#include "check.h"

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

uint16_t value_of(uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t dim) {
  return static_cast<uint16_t>(((layer * 7 + seq) * 5 + head) * 1031 + pos * 13 + dim);
}

void write(KvCache& cache, uint32_t seq, uint32_t pos) {
  for (uint32_t layer = 0; layer < 2; ++layer)
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

// Decides by brute force whether a plan computes the model, independently of the verifier.
//
// A machine runs the plan's tasks on memory that holds 64-bit hashes: every output element is a hash of everything it
// depends on, so any wrong, stale, missing or doubled value shows in the outputs. Two epochs run back to back; features
// and the block are memory that both share, so what one epoch overwrites early the next one misses.
//
// Orders: counters only grow, so with one task frozen the others reach, in whatever order they run, exactly the tasks
// that do not depend on it. For two conflicting tasks without an order between them, freezing one and running all
// others makes them run in one order, freezing the other one in the other order; one of the two is wrong. So freezing
// every task in turn tries all orders that matter.
//
// What goes by a tag edge is not in memory: it lies with the edge, two rows for even and odd epochs, marked with the
// epoch. Who waits for the edge finds it there, everybody else finds memory. What tags do not order shows
// plan_oracle_order.h.
#pragma once

#include <mimo_rt/plan.h>

#include "plan_oracle_order.h"
#include "plan_oracle_shares.h"

#include "plan/buffers.h"
#include "plan/kinds.h"
#include "plan/route_table.h"
#include "plan/task.h"
#include "weights/packed.h"
#include "weights/qkv_tiles.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace plan_oracle {

using namespace mimo_rt;

inline uint64_t mix(uint64_t a, uint64_t b) {
  a ^= b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2);
  a *= 0xff51afd7ed558ccdu;
  return a ^ a >> 32;
}

template <typename... Rest>
uint64_t mix(uint64_t a, uint64_t b, uint64_t c, Rest... rest) {
  return mix(mix(a, b), c, rest...);
}

constexpr uint32_t kNumEpochs = 2;

struct Scenario {
  std::array<uint32_t, kNumEpochs> num_tokens;
  uint64_t seed;  ///< seed % 3: experts at random, the same for all tokens, as many as possible
  uint64_t expected = 0;  ///< outputs()
  // Plans with a draft.
  std::array<uint32_t, kNumEpochs> num_context{};        ///< rows of context
  std::array<bool, kNumEpochs> is_drafting{true, true};  ///< rounds; false only with one token
};

/// Sorted experts of each token.
inline std::vector<std::vector<uint32_t>> make_routing(const PlanShape& shape, const Scenario& scenario, uint32_t epoch,
                                                       uint32_t layer) {
  std::vector<std::vector<uint32_t>> routing(scenario.num_tokens[epoch]);
  for (uint32_t t = 0; t < routing.size(); ++t) {
    std::set<uint32_t> chosen;
    for (uint64_t i = 0; chosen.size() < shape.experts_per_token; ++i) {
      const uint64_t draw = scenario.seed % 3 == 2 ? t * shape.experts_per_token + i
                                                   : mix(scenario.seed, epoch, layer, scenario.seed % 3 ? 0 : t, i);
      chosen.insert(static_cast<uint32_t>(draw % shape.num_experts));
    }
    routing[t].assign(chosen.begin(), chosen.end());
  }
  return routing;
}

/// Memory and the meaning of tasks.
class Machine {
 public:
  Machine(const Plan& plan, const Scenario& scenario)
      : plan_(plan), shape_(plan.shape()), scenario_(scenario), arena_(plan.arena_bytes() / 2 + 1, 0) {
    for (auto& epoch : external_) {
      epoch.resize(plan.buffers().size());
      for (size_t id = 0; id < epoch.size(); ++id)
        if (plan.buffers()[id].space != BufferInfo::Space::arena) epoch[id].assign(plan.buffers()[id].bytes / 2 + 1, 0);
    }
  }

  /// `seen`: checks each access to memory.
  void execute(const Task& task, uint32_t epoch, SeenOrder* seen = nullptr) {
    task_ = &task;
    seen_ = seen;
    epoch_ = epoch;
    num_tokens_ = scenario_.num_tokens[epoch];
    num_context_ = scenario_.num_context[epoch];
    num_draft_ = scenario_.is_drafting[epoch] ? draft_.block_size : 0;
    if (task.kind >= TaskKind::context_fc) check_draft_kind(task);
    else if (task.layer_idx != kNoLayer && task.layer_idx >= shape_.layers.size()) throw Violation("no such layer");
    const bool moe_kind = task.kind >= TaskKind::router && task.kind <= TaskKind::expert_down;
    const bool needs_layer = moe_kind || (task.kind >= TaskKind::qkv_proj && task.kind <= TaskKind::down_proj);
    if (needs_layer && task.layer_idx == kNoLayer) throw Violation("kind needs a layer");
    if (moe_kind && !shape_.layers[task.layer_idx].is_moe) throw Violation("layer has no experts");
    slots_.clear();
    if (moe_kind) make_slots(task.layer_idx);
    const uint64_t counts[] = {1, num_tokens_, experts_.size(), num_context_, num_draft_};
    const uint64_t count = counts[static_cast<size_t>(trip_count(task.kind))];
    inputs_.clear();
    for (uint64_t t = task.tile_first; t < task.tile_end * count; t += std::max(task.tile_stride, 1u))
      run_tile(task, static_cast<uint32_t>(t));
  }

  /// What the step leaves behind: logits, samples, KV rows.
  uint64_t outputs() {
    uint64_t hash = 1;
    task_ = nullptr, seen_ = nullptr;
    for (epoch_ = 0; epoch_ < kNumEpochs; ++epoch_) {
      const uint32_t n = scenario_.num_tokens[epoch_];
      for (uint32_t r = 0; r < n; ++r) {
        hash = mix(hash, row(kLogits, r, 0, shape_.vocab_size));
        if (!plan_.options().is_round) hash = mix(hash, row(kSampled, r, 0, 1));
        for (uint32_t l = 0; l < shape_.layers.size(); ++l) hash = mix(hash, row(kv_id(l), r, 0, kv_cols(l)));
      }
      for (uint32_t r = 0; r < scenario_.num_context[epoch_]; ++r)
        hash = mix(hash, row(kContextKv, r, 0, context_cols(draft_.num_layers)));
    }
    if (plan_.options().is_round) hash = mix(hash, row(kBlock, 0, 0, draft_.block_size));
    if (!draft_.num_layers) return hash;
    for (uint32_t r = 0; r < plan_.options().max_tokens; ++r) hash = mix(hash, row(kFeatures, r, 0, num_features()));
    return hash;
  }

 private:
  void check_draft_kind(const Task& task) const {
    const bool in_step = task.kind >= TaskKind::context_fc && task.kind <= TaskKind::context_kv;
    if (!(in_step ? draft_.num_layers != 0 : plan_.options().is_round)) throw Violation("no such kind in this plan");
    const bool needs_layer = task.kind >= TaskKind::draft_qkv_proj && task.kind <= TaskKind::draft_down_proj;
    const bool has_layer = needs_layer || (task.kind == TaskKind::draft_norm && task.layer_idx != kNoLayer);
    if (has_layer && task.layer_idx >= draft_.num_layers) throw Violation("no such draft layer");
  }
  uint32_t num_features() const {
    return static_cast<uint32_t>(draft_.target_layer_ids.size()) * shape_.hidden_size;
  }
  uint32_t context_cols(uint32_t num_layers) const {
    return num_layers * draft_.num_kv_heads * (draft_.qk_head_dim + draft_.v_head_dim);
  }

  struct Slot { uint32_t token, expert; };
  struct TaggedWord { uint64_t value = 0; uint32_t epoch = kNumEpochs; };

  static uint16_t kv_id(uint32_t layer) { return static_cast<uint16_t>(kFirstKv + layer); }
  uint32_t kv_cols(uint32_t layer) const {
    const PlanShape::Layer& l = shape_.layers[layer];
    return l.num_kv_heads * (l.qk_head_dim + l.v_head_dim);
  }

  /// The granules (2 bytes) of elements [begin, end) of a row; `epoch` matters for KV and logits only.
  std::span<uint64_t> granules(uint16_t id, uint32_t r, uint32_t begin, uint32_t end, uint32_t epoch) {
    if (id >= plan_.buffers().size()) throw Violation("no such buffer");
    const BufferInfo& info = plan_.buffers()[id];
    const uint64_t first = (uint64_t{r} * info.cols + begin) * info.element_bytes;
    const uint64_t bytes = uint64_t{end - begin} * info.element_bytes;
    if (first + bytes > info.bytes) throw Violation("outside of " + info.name);
    const bool in_arena = info.space == BufferInfo::Space::arena;
    if (in_arena && info.offset + first + bytes > plan_.arena_bytes()) throw Violation("outside of the arena");
    if (id == kFeatures || id == kBlock) epoch = 0;
    std::vector<uint64_t>& memory = in_arena ? arena_ : external_[epoch][id];
    return {memory.data() + ((in_arena ? info.offset : 0) + first) / 2, bytes / 2};
  }
  uint64_t get(uint16_t id, uint32_t r, uint32_t c) { return row(id, r, c, c + 1); }
  void put(uint16_t id, uint32_t r, uint32_t c, uint64_t value) {
    if (is_tag_of(task_->signal_counter, id)) {
      tags_[{task_->signal_counter, epoch_ % 2}][{r, c}] = {value, epoch_};
      return;
    }
    for (uint64_t& granule : granules(id, r, c, c + 1, epoch_)) {
      if (seen_) seen_->write(&granule);
      granule = value;
    }
  }
  bool is_tag_of(uint32_t counter, uint16_t id) const {
    return is_tag(plan_, counter) && plan_.counters()[counter].buffer == id;
  }
  /// The words of a row, if the task waits for some.
  std::optional<uint64_t> tagged_row(uint16_t id, uint32_t r, uint32_t begin, uint32_t end) {
    for (uint32_t i = 0; task_ && i < std::min<uint32_t>(task_->num_waits, 2); ++i) {
      if (!is_tag_of(task_->waits[i].counter, id)) continue;
      uint64_t hash = 2;
      for (uint32_t c = begin; c < end; ++c) {
        const TaggedWord& word = tags_[{task_->waits[i].counter, epoch_ % 2}][{r, c}];
        if (word.epoch != epoch_) throw Violation("waits for a word of " + plan_.buffers()[id].name + " for ever");
        for (uint32_t g = 0; g < plan_.buffers()[id].element_bytes / 2; ++g) hash = mix(hash, word.value);
      }
      return hash;
    }
    return std::nullopt;
  }
  uint64_t row(uint16_t id, uint32_t r, uint32_t begin, uint32_t end) { return row_of(id, r, begin, end, epoch_); }
  uint64_t row_of(uint16_t id, uint32_t r, uint32_t begin, uint32_t end, uint32_t epoch) {
    if (const auto words = tagged_row(id, r, begin, end)) return *words;
    uint64_t hash = 2;
    for (const uint64_t& granule : granules(id, r, begin, end, epoch)) {
      if (seen_) seen_->read(&granule);
      hash = mix(hash, granule);
    }
    return hash;
  }

  void make_slots(uint32_t layer) {
    const auto routing = make_routing(shape_, scenario_, epoch_, layer);
    std::set<uint32_t> active;
    for (const auto& chosen : routing) active.insert(chosen.begin(), chosen.end());
    experts_.assign(active.begin(), active.end());
    for (uint32_t expert : experts_)
      for (uint32_t t = 0; t < routing.size(); ++t)
        if (std::count(routing[t].begin(), routing[t].end(), expert)) slots_.push_back({t, expert});
  }

  /// Hashes of the normalised rows that `task` sees, read once. Norms of its own give what rms_norm gives.
  uint64_t input(const Task& task, uint32_t t, uint64_t norm) { return input(task, t, norm, num_tokens_); }
  uint64_t input(const Task& task, uint32_t t, uint64_t norm, uint32_t num_rows) {
    if (inputs_.empty())
      for (uint32_t r = 0; r < num_rows; ++r) {
        uint64_t hash = row(task.input, r, 0, shape_.hidden_size);
        if (task.flags & kFusedNorm) {
          const uint64_t normalised = mix(norm, hash);
          hash = 2;
          for (uint32_t c = 0; c < shape_.hidden_size; ++c) hash = mix(hash, mix(normalised, c));
        }
        inputs_.push_back(hash);
      }
    return inputs_[t];
  }
  /// Hashes of whole input rows.
  uint64_t raw_input(const Task& task, uint32_t t, uint32_t width) { return raw_input(task, t, width, num_tokens_); }
  uint64_t raw_input(const Task& task, uint32_t t, uint32_t width, uint32_t num_rows) {
    if (inputs_.empty())
      for (uint32_t r = 0; r < num_rows; ++r) inputs_.push_back(row(task.input, r, 0, width));
    return inputs_[t];
  }
  uint64_t route_hash(uint16_t id) {
    const uint32_t slots = plan_.options().max_tokens * shape_.experts_per_token;
    return row(id, 0, 0, static_cast<uint32_t>(RouteTable::bytes(shape_.num_experts, slots) / 4));
  }

  void run_tile(const Task& task, uint32_t tile) {
    const uint32_t l = task.layer_idx, first_col = tile * kTileRows;
    const uint64_t op = mix(static_cast<uint64_t>(task.kind), l);
    const auto columns = [&](uint32_t width, const std::function<uint64_t(uint32_t)>& hash_of_row, uint32_t rows,
                             bool update) {
      if (first_col >= round_up(width, kTileRows)) throw Violation("tile outside of the matrix");
      for (uint32_t r = 0; r < rows; ++r)
        for (uint32_t c = first_col; c < std::min(first_col + kTileRows, width); ++c)
          put(task.output, r, c, mix(op, hash_of_row(r), c, update ? get(task.output, r, c) : 0));
    };
    switch (task.kind) {
      case TaskKind::embed:
        for (uint32_t c = 0; c < shape_.hidden_size; ++c)
          put(task.output, tile, c, mix(op, task.flags & kFromBlock ? get(kBlock, 0, tile) : mix(epoch_, tile), c));
        break;
      case TaskKind::rms_norm: run_norm(task, tile, norm_id(l, task.flags & kMlpNorm)); break;
      case TaskKind::qkv_proj: run_qkv(task, tile, op); break;
      case TaskKind::attention:
        for_each_head(task, tile, num_tokens_, shape_.layers[l].num_q_heads, [&](auto... at) { attend(task, at..., op); });
        break;
      case TaskKind::o_proj: {
        const uint32_t width = shape_.layers[l].num_q_heads * shape_.layers[l].v_head_dim;
        columns(shape_.hidden_size, [&](uint32_t r) { return raw_input(task, r, width); }, num_tokens_, true);
        break;
      }
      case TaskKind::router:
        columns(round_up(shape_.num_experts, kTileRows), [&](uint32_t r) { return input(task, r, norm_id(l, true)); },
                num_tokens_, false);
        break;
      case TaskKind::select_experts: {
        uint64_t hash = op;
        for (uint32_t r = 0; r < num_tokens_; ++r) hash = mix(hash, row(task.input, r, 0, shape_.num_experts));
        const uint32_t slots = plan_.options().max_tokens * shape_.experts_per_token;
        for (uint32_t c = 0; c < RouteTable::bytes(shape_.num_experts, slots) / 4; ++c)
          put(task.output, 0, c, mix(hash, c));
        break;
      }
      case TaskKind::expert_gate_up: run_expert_gate_up(task, tile, op); break;
      case TaskKind::expert_down: {
        if (inputs_.empty()) {
          inputs_.assign(num_tokens_, route_hash(task.input2));
          for (uint32_t s = 0; s < slots_.size(); ++s)
            inputs_[slots_[s].token] = mix(inputs_[slots_[s].token], row(task.input, s, 0, shape_.expert_width));
        }
        columns(shape_.hidden_size, [&](uint32_t r) { return inputs_[r]; }, num_tokens_, true);
        capture(task, first_col);
        break;
      }
      case TaskKind::gate_up_proj:
        columns(shape_.dense_width, [&](uint32_t r) { return input(task, r, norm_id(l, true)); }, num_tokens_, false);
        break;
      case TaskKind::down_proj:
        columns(shape_.hidden_size, [&](uint32_t r) { return raw_input(task, r, shape_.dense_width); }, num_tokens_,
                true);
        capture(task, first_col);
        break;
      case TaskKind::lm_head:
        columns(round_up(shape_.vocab_size, kTileRows),
                [&](uint32_t r) { return input(task, r, norm_id(kNoLayer, false)); }, num_tokens_, false);
        break;
      case TaskKind::sample:
      case TaskKind::accept: run_share(task, op); break;
      default: run_draft_tile(task, tile, op, columns);
    }
  }

  void run_norm(const Task& task, uint32_t tile, uint64_t norm) {
    const uint64_t hash = mix(norm, row(task.input, tile, 0, shape_.hidden_size));
    for (uint32_t c = 0; c < shape_.hidden_size; ++c) put(task.output, tile, c, mix(hash, c));
  }

  void capture(const Task& task, uint32_t first_col) {
    if (!(task.flags & kCapture)) return;
    const std::vector<uint32_t>& ids = draft_.target_layer_ids;
    const auto index = static_cast<uint32_t>(std::find(ids.begin(), ids.end(), task.layer_idx) - ids.begin());
    if (index == ids.size()) throw Violation("layer is not captured");
    for (uint32_t r = 0; r < num_tokens_; ++r)
      for (uint32_t c = first_col; c < std::min(first_col + kTileRows, shape_.hidden_size); ++c)
        put(task.output2, r, index * shape_.hidden_size + c, get(task.output, r, c));
  }

  template <typename Columns>
  void run_draft_tile(const Task& task, uint32_t tile, uint64_t op, const Columns& columns) {
    const uint32_t hidden = shape_.hidden_size, rows = num_draft_;
    const auto from = [&](uint32_t width) {
      return [&, width](uint32_t r) { return raw_input(task, r, width, rows); };
    };
    switch (task.kind) {
      case TaskKind::context_fc:  // the ring holds max_tokens rows
        columns(hidden, [&](uint32_t r) { return row(task.input, r % plan_.options().max_tokens, 0, num_features()); },
                num_context_, false);
        break;
      case TaskKind::context_norm: run_norm(task, tile, kHiddenNorm); break;
      case TaskKind::context_kv: run_context_kv(task, tile, op); break;
      case TaskKind::draft_embed:
        for (uint32_t c = 0; c < hidden; ++c)
          put(task.output, tile, c, mix(op, tile ? 5 : get(task.input, 0, 0), c));
        break;
      case TaskKind::draft_norm: run_norm(task, tile, draft_norm_id(task.layer_idx, task.flags & kMlpNorm)); break;
      case TaskKind::draft_qkv_proj: run_draft_qkv(task, tile, op); break;
      case TaskKind::draft_attention:
        for_each_head(task, tile, num_draft_, draft_.num_q_heads, [&](auto... at) { attend_draft(task, at..., op); });
        break;
      case TaskKind::draft_o_proj: columns(hidden, from(draft_.num_q_heads * draft_.v_head_dim), rows, true); break;
      case TaskKind::draft_gate_up_proj:
        columns(draft_.intermediate_size,
                [&](uint32_t r) { return input(task, r, draft_norm_id(task.layer_idx, true), rows); }, rows, false);
        break;
      case TaskKind::draft_down_proj: columns(hidden, from(draft_.intermediate_size), rows, true); break;
      case TaskKind::draft_lm_head:
        if (!rows) break;
        columns(round_up(draft_.vocab_size, kTileRows),
                [&](uint32_t r) { return input(task, r + 1, draft_norm_id(kNoLayer, false), rows); }, rows - 1, false);
        break;
      case TaskKind::draft_sample:
        if (tile) put(task.output, 0, tile, mix(op, row(task.input, tile - 1, 0, draft_.vocab_size)));
        break;
      default: throw Violation("unknown kind");
    }
  }

  void run_share(const Task& task, uint64_t op) {
    const bool is_round = task.kind == TaskKind::accept;
    uint64_t hash = op;
    for (uint32_t r = 0; r < num_tokens_; ++r) {
      hash = mix(hash, row(task.input, r, 0, shape_.vocab_size));
      if (is_round && r && draft_.num_layers) hash = mix(hash, row(task.input2, r - 1, 0, draft_.vocab_size));
    }
    const auto all = shares_.arrive(hash, task.tile_end);
    if (!all) return;
    hash = is_round ? mix(*all, row(task.output, 0, 0, num_tokens_)) : *all;
    const uint32_t num_out = !is_round ? num_tokens_ : draft_.num_layers ? 1 : draft_.block_size;
    for (uint32_t r = 0; r < num_out; ++r) put(task.output, is_round ? 0 : r, is_round ? r : 0, mix(hash, r));
  }

  void run_context_kv(const Task& task, uint32_t tile, uint64_t op) {
    const uint32_t head = tile % draft_.num_kv_heads, part = tile / draft_.num_kv_heads;
    const uint32_t dim = part % 2 ? draft_.v_head_dim : draft_.qk_head_dim;
    const uint32_t base = context_cols(part / 2) + (part % 2 ? draft_.num_kv_heads * draft_.qk_head_dim : 0);
    if (part / 2 >= draft_.num_layers) throw Violation("tile outside of the matrix");
    for (uint32_t r = 0; r < num_context_; ++r)
      for (uint32_t c = base + head * dim; c < base + (head + 1) * dim; ++c)
        put(task.output, r, c, mix(op, input(task, r, kHiddenNorm, num_context_), c));
  }

  void run_draft_qkv(const Task& task, uint32_t tile, uint64_t op) {
    const uint32_t num_q = draft_.num_q_heads, num_kv = draft_.num_kv_heads;
    if (tile >= num_q + 2 * num_kv) throw Violation("tile outside of the matrix");
    const bool is_q = tile < num_q, is_v = tile >= num_q + num_kv;
    const uint32_t dim = is_v ? draft_.v_head_dim : draft_.qk_head_dim;
    uint32_t begin = (is_q ? tile : tile - num_q) * dim;
    if (is_v) begin = num_kv * draft_.qk_head_dim + (tile - num_q - num_kv) * dim;
    for (uint32_t t = 0; t < num_draft_; ++t)
      for (uint32_t c = begin; c < begin + dim; ++c)
        put(is_q ? task.output : task.output2, t, c,
            mix(op, input(task, t, draft_norm_id(task.layer_idx, false), num_draft_), c));
  }

  /// attend(row, q head) for what a tile of attention has.
  template <typename Attend>
  static void for_each_head(const Task& task, uint32_t tile, uint32_t num_rows, uint32_t num_q_heads, const Attend& attend) {
    const uint32_t t = tile / task.tile_end, share = tile % task.tile_end;
    if (t >= num_rows) throw Violation("no such row");
    const uint32_t end = share_begin(share + 1, task.tile_end, num_q_heads);
    for (uint32_t head = share_begin(share, task.tile_end, num_q_heads); head < end; ++head) attend(t, head);
  }

  void attend_draft(const Task& task, uint32_t t, uint32_t head, uint64_t op) {
    const uint32_t num_kv = draft_.num_kv_heads, g = head / (draft_.num_q_heads / num_kv);
    const uint32_t dk = draft_.qk_head_dim, dv = draft_.v_head_dim;
    uint64_t hash = mix(op, row(task.input, t, head * dk, (head + 1) * dk));
    const auto add = [&](uint16_t id, uint32_t r, uint32_t base, uint32_t epoch) {
      const uint32_t v = base + num_kv * dk;
      hash = mix(hash, row_of(id, r, base + g * dk, base + (g + 1) * dk, epoch),
                 row_of(id, r, v + g * dv, v + (g + 1) * dv, epoch));
    };
    for (uint32_t e = 0; e <= epoch_; ++e)
      for (uint32_t r = 0; r < scenario_.num_context[e]; ++r) add(kContextKv, r, context_cols(task.layer_idx), e);
    for (uint32_t r = 0; r < num_draft_; ++r) add(task.input2, r, 0, epoch_);
    for (uint32_t c = head * dv; c < (head + 1) * dv; ++c) put(task.output, t, c, mix(hash, c));
  }

  static constexpr uint64_t kHiddenNorm = 76;
  static uint64_t norm_id(uint32_t layer, bool mlp) { return mix(77, layer, mlp); }
  static uint64_t draft_norm_id(uint32_t layer, bool mlp) { return mix(78, layer, mlp); }

  void run_qkv(const Task& task, uint32_t tile, uint64_t op) {
    const PlanShape::Layer& l = shape_.layers[task.layer_idx];
    const LayerConfig layer = layer_config(l);
    std::vector<QkvTile>& tiles = qkv_tiles_[task.layer_idx];
    if (tiles.empty()) tiles = qkv_tiles(layer);
    if (tile >= tiles.size()) throw Violation("tile outside of the matrix");
    const QkvTile& part = tiles[tile];
    for (uint32_t packed_row = 0; packed_row < kTileRows; ++packed_row) {
      const int32_t element = qkv_tile_element(part, layer, packed_row);
      if (element < 0) continue;
      uint32_t c = part.head_idx * l.qk_head_dim + static_cast<uint32_t>(element);
      if (part.part == QkvTile::Part::v)
        c = l.num_kv_heads * l.qk_head_dim + part.head_idx * l.v_head_dim + static_cast<uint32_t>(element);
      for (uint32_t t = 0; t < num_tokens_; ++t)
        put(part.part == QkvTile::Part::q ? task.output : task.output2, t, c,
            mix(op, input(task, t, norm_id(task.layer_idx, false)), c));
    }
  }

  void attend(const Task& task, uint32_t t, uint32_t head, uint64_t op) {
    const PlanShape::Layer& l = shape_.layers[task.layer_idx];
    const uint32_t g = head / (l.num_q_heads / l.num_kv_heads);
    const uint32_t dk = l.qk_head_dim, dv = l.v_head_dim, v_base = l.num_kv_heads * dk;
    uint64_t hash = mix(op, row(task.input, t, head * dk, (head + 1) * dk));
    for (uint32_t e = 0; e <= epoch_; ++e)
      for (uint32_t k = 0; k < (e == epoch_ ? t + 1 : scenario_.num_tokens[e]); ++k)
        hash = mix(hash, row_of(task.input2, k, g * dk, (g + 1) * dk, e),
                   row_of(task.input2, k, v_base + g * dv, v_base + (g + 1) * dv, e));
    for (uint32_t c = head * dv; c < (head + 1) * dv; ++c) put(task.output, t, c, mix(hash, c));
  }

  void run_expert_gate_up(const Task& task, uint32_t tile, uint64_t op) {
    const uint32_t pairs = (shape_.expert_width + kTileRows - 1) / kTileRows;
    const uint32_t a = tile / task.tile_end, share = tile % task.tile_end;
    const uint64_t route = route_hash(task.input2);
    for (uint32_t s = 0; s < slots_.size(); ++s) {
      if (slots_[s].expert != experts_[a]) continue;
      const uint64_t hash = mix(op, route, slots_[s].expert, input(task, slots_[s].token, norm_id(task.layer_idx, true)));
      const uint32_t end = share_begin(share + 1, task.tile_end, pairs) * kTileRows;
      for (uint32_t c = share_begin(share, task.tile_end, pairs) * kTileRows; c < std::min(end, shape_.expert_width); ++c)
        put(task.output, s, c, mix(hash, c));
    }
  }

  const Plan& plan_;
  const PlanShape& shape_;
  const PlanShape::Draft& draft_ = shape_.draft;
  const Scenario scenario_;
  std::vector<uint64_t> arena_;
  std::array<std::vector<std::vector<uint64_t>>, kNumEpochs> external_;  ///< [epoch][buffer]
  using Pair = std::pair<uint32_t, uint32_t>;
  std::map<Pair, std::map<Pair, TaggedWord>> tags_;  ///< [counter, epoch % 2][row, column]
  const Task* task_ = nullptr;  ///< at hand
  SeenOrder* seen_ = nullptr;
  uint32_t epoch_ = 0, num_tokens_ = 0, num_context_ = 0, num_draft_ = 0;
  std::map<uint32_t, std::vector<QkvTile>> qkv_tiles_;
  std::vector<uint32_t> experts_;  ///< active, ascending
  std::vector<Slot> slots_;
  std::vector<uint64_t> inputs_;
  JointShares shares_;
};

}  // namespace plan_oracle

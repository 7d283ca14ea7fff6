#include "plan/builder.h"

#include "core/checks.h"
#include "plan/buffers.h"
#include "plan/kinds.h"
#include "plan/route_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Plan.build";
constexpr uint32_t kMaxWorkers = 4096, kMaxTokens = 4096, kMaxLayers = 4096, kMaxDim = 1u << 24;
constexpr uint64_t kMaxQkvGroups = 1u << 24;  // of all layers; 70 layers of 128 heads have 120 thousand
constexpr uint64_t kArenaAlignment = 64;

void check_options(const PlanOptions& options, const DraftConfig* draft) {
  const auto in_range = [](const char* name, uint32_t value, uint32_t max) {
    MIMO_RT_CHECK(value >= 1 && value <= max, invalid_argument, kWhere, name, ": expected 1..", max, ", got ", value);
  };
  in_range("num_workers", options.num_workers, kMaxWorkers);
  in_range("max_tokens", options.max_tokens, kMaxTokens);
  in_range("max_logit_rows", options.max_logit_rows, options.max_tokens);
  for (const auto& [name, value] : {std::pair{"bytes_per_ns", options.bytes_per_ns},
                                    {"macs_per_ns", options.macs_per_ns},
                                    {"task_overhead_ns", options.task_overhead_ns}})
    MIMO_RT_CHECK(std::isfinite(value) && value > 0, invalid_argument, kWhere, name, ": expected > 0, got ", value);
  MIMO_RT_CHECK(options.costs.is_sound(), invalid_argument, kWhere,
                "costs: expected times from 0 to 1e9 ns, none of a matrix falling as tokens are added");
  if (draft) in_range("max_context_rows", options.max_context_rows, kMaxTokens);
  MIMO_RT_CHECK(draft || !options.max_context_rows, invalid_argument, kWhere,
                "max_context_rows: expected 0 without a draft, got ", options.max_context_rows);
  if (!options.is_round) return;
  if (!draft) in_range("max_tokens of a round", options.max_tokens, kMaxBlockSize);
  const uint32_t block_size = draft ? draft->block_size : options.max_tokens;
  MIMO_RT_CHECK(options.max_tokens == block_size && options.max_logit_rows == block_size, invalid_argument, kWhere,
                "a round's max_tokens and max_logit_rows: expected the block size ", block_size, ", got ",
                options.max_tokens, " and ", options.max_logit_rows);
}

void check_dim(const std::string& name, uint64_t value, uint64_t max = kMaxDim) {
  MIMO_RT_CHECK(value >= 1 && value <= max, unsupported_shape, kWhere, name, ": expected 1..", max, ", got ", value);
}

void check_layer(const LayerConfig& layer, uint32_t layer_idx) {
  const std::string where = concat("layer ", layer_idx, ' ');
  check_dim(where + "num_kv_heads", layer.num_kv_heads, 65535);
  check_dim(where + "num_q_heads", layer.num_q_heads, 65535);
  check_dim(where + "qk_head_dim", layer.qk_head_dim, 65535);
  check_dim(where + "v_head_dim", layer.v_head_dim, 65535);
  MIMO_RT_CHECK(layer.num_q_heads % layer.num_kv_heads == 0, unsupported_shape, kWhere, where,
                "num_q_heads: expected a multiple of num_kv_heads ", layer.num_kv_heads, ", got ", layer.num_q_heads);
  MIMO_RT_CHECK(layer.rotary_dim % 2 == 0 && layer.rotary_dim <= layer.qk_head_dim, unsupported_shape, kWhere, where,
                "rotary_dim: expected even and <= ", layer.qk_head_dim, ", got ", layer.rotary_dim);
  const uint64_t width = uint64_t{layer.num_q_heads} * std::max(layer.qk_head_dim, layer.v_head_dim);
  check_dim(where + "width of all heads", width);
}

void check_config(const ModelConfig& config) {
  check_dim("num_layers", config.num_layers, kMaxLayers);
  MIMO_RT_CHECK(config.layers.size() == config.num_layers, unsupported_shape, kWhere, "layers: expected ",
                config.num_layers, " entries, got ", config.layers.size());
  check_dim("hidden_size", config.hidden_size);
  check_dim("vocab_size", config.vocab_size);
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    check_layer(config.layers[l], l);
    if (!config.layers[l].is_moe) {
      check_dim("intermediate_size", config.intermediate_size);
      continue;
    }
    check_dim("num_experts", config.num_experts, 65535);
    check_dim("experts_per_token", config.experts_per_token, config.num_experts);
    check_dim("expert_intermediate_size", config.expert_intermediate_size);
  }
}

const ModelConfig& checked(const ModelConfig& config, const PlanOptions& options, const DraftConfig* draft) {
  check_options(options, draft);
  check_config(config);
  if (draft) check_draft(*draft, config);
  return config;
}

}  // namespace

uint32_t choose_expert_shares(uint32_t num_pairs, uint32_t num_workers, uint32_t max_active, double tile_price) {
  if (num_workers >= num_pairs) return num_pairs;
  // Candidates hold s pairs per tile, largest first; plus one share per worker, which keeps a worker's part of every
  // expert in one piece. The price of a candidate: pairs of the busiest worker, summed over numbers of active experts,
  // plus a small charge per tile (each prepares its activations anew).
  const uint32_t counts = std::min(max_active, 16u);
  const auto price = [&](uint32_t shares) {
    double sum = 0.0;
    std::vector<double> load(num_workers, 0.0);
    for (uint32_t tile = 0; tile < counts * shares; ++tile) {
      const uint32_t c = tile % shares;
      const uint32_t pairs = share_begin(c + 1, shares, num_pairs) - share_begin(c, shares, num_pairs);
      load[tile % num_workers] += pairs + tile_price;
      if (c + 1 == shares) sum += *std::max_element(load.begin(), load.end());
    }
    return sum;
  };
  uint32_t best = num_workers;
  double best_price = price(best);
  for (uint32_t pairs = std::min(num_pairs, 64u); pairs >= 1; --pairs) {
    const uint32_t shares = (num_pairs + pairs - 1) / pairs;
    const double candidate = price(shares);
    if (candidate < best_price) best = shares, best_price = candidate;
  }
  return best;
}

PlanBuilder::PlanBuilder(const ModelConfig& config, const PlanOptions& options, const DraftConfig* draft)
    : config_(checked(config, options, draft)), draft_(draft), costs_(config, options) {
  plan_.options_ = options;
}

void PlanBuilder::make_shape() {
  PlanShape& shape = plan_.shape_;
  shape.hidden_size = config_.hidden_size;
  shape.vocab_size = config_.vocab_size;
  for (const LayerConfig& layer : config_.layers) {
    shape.layers.push_back({layer.is_moe, layer.num_q_heads, layer.num_kv_heads, layer.qk_head_dim, layer.v_head_dim,
                            layer.rotary_dim});
    if (layer.is_moe) {
      shape.expert_width = config_.expert_intermediate_size;
      shape.num_experts = config_.num_experts;
      shape.experts_per_token = config_.experts_per_token;
    } else {
      shape.dense_width = config_.intermediate_size;
    }
  }
  if (!draft_) {
    shape.draft.block_size = plan_.options_.is_round ? plan_.options_.max_tokens : 0;
    return;
  }
  const uint32_t vocab_size = draft_->draft_vocab_size ? draft_->draft_vocab_size : shape.vocab_size;
  shape.draft = {draft_->num_layers,  draft_->block_size,   draft_->intermediate_size, vocab_size,
                 draft_->num_q_heads, draft_->num_kv_heads, draft_->qk_head_dim,       draft_->v_head_dim,
                 draft_->rotary_dim,  draft_->target_layer_ids};
}

void PlanBuilder::check_shape() const {
  // Tables of 8 bytes per row group follow from a few numbers, and work on each group from every layer.
  uint64_t num_groups = 0;
  for (uint32_t l = 0; l < config_.num_layers; ++l) {
    num_groups += num_tiles(plan_.shape_, TaskKind::qkv_proj, static_cast<uint16_t>(l));
    MIMO_RT_CHECK(num_groups <= kMaxQkvGroups, unsupported_shape, kWhere,
                  "row groups of the qkv matrices of layers 0..", l, ": expected <= ", kMaxQkvGroups, ", got ", num_groups);
  }
}

void PlanBuilder::add_buffer(std::string name, BufferInfo::Space space, uint64_t rows, uint64_t cols,
                             uint32_t element_bytes) {
  const uint64_t bytes = rows * cols * element_bytes;
  BufferInfo info{std::move(name), space, static_cast<uint32_t>(rows), static_cast<uint32_t>(cols), element_bytes, 0,
                  bytes};
  if (space == BufferInfo::Space::arena) {
    info.offset = plan_.arena_bytes_;
    plan_.arena_bytes_ = (info.offset + bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  }
  plan_.buffers_.push_back(std::move(info));
}

void PlanBuilder::make_buffers() {
  using enum BufferInfo::Space;
  const PlanShape& shape = plan_.shape_;
  const uint64_t tokens = plan_.options_.max_tokens, logit_rows = plan_.options_.max_logit_rows;
  const uint64_t max_slots = tokens * shape.experts_per_token;
  uint64_t q = 0, attn = 0;
  for (const PlanShape::Layer& layer : shape.layers) {
    q = std::max(q, uint64_t{layer.num_q_heads} * layer.qk_head_dim);
    attn = std::max(attn, uint64_t{layer.num_q_heads} * layer.v_head_dim);
  }
  const bool has_moe = shape.num_experts != 0;
  const uint64_t route_words = has_moe ? RouteTable::bytes(shape.num_experts, static_cast<uint32_t>(max_slots)) / 4 : 0;
  add_buffer("tokens", input, tokens, 1, 4);
  add_buffer("x", arena, tokens, shape.hidden_size, 2);
  add_buffer("h", arena, fuse_norms_ ? 0 : tokens, shape.hidden_size, 2);
  add_buffer("q", arena, tokens, q, 2);
  add_buffer("attn", arena, tokens, attn, 2);
  add_buffer("router_logits", arena, has_moe ? tokens : 0, round_up(shape.num_experts, kTileRows), 4);
  add_buffer("route", arena, has_moe ? 1 : 0, route_words, 4);
  add_buffer("act", arena, std::max(max_slots, tokens), std::max(shape.dense_width, shape.expert_width), 2);
  add_buffer("logits", output, logit_rows, round_up(shape.vocab_size, kTileRows), 4);
  add_buffer("sampled", output, plan_.options_.is_round ? 0 : logit_rows, 1, 4);
  make_draft_buffers();
  for (size_t l = 0; l < shape.layers.size(); ++l) {
    const PlanShape::Layer& layer = shape.layers[l];
    add_buffer(concat("kv.", l), kv, tokens, layer.num_kv_heads * (layer.qk_head_dim + layer.v_head_dim), 2);
  }
}

std::vector<PlanBuilder::Share> PlanBuilder::one_worker() const { return {{0, 0, 1, 1, 1.0}}; }

std::vector<PlanBuilder::Share> PlanBuilder::contiguous(uint32_t num_tiles, double tile_ns) const {
  // All row groups of a matrix have the same bytes, so equal counts are equal bytes.
  const uint32_t parts = costs_.choose_parts(num_tiles, tile_ns, std::min(plan_.options_.num_workers, num_tiles));
  std::vector<Share> shares;
  for (uint32_t i = 0; i < parts; ++i) {
    const uint32_t begin = share_begin(i, parts, num_tiles), end = share_begin(i + 1, parts, num_tiles);
    shares.push_back({i, begin, 1, end, static_cast<double>(end - begin)});
  }
  return shares;
}

std::vector<PlanBuilder::Share> PlanBuilder::strided(uint32_t tiles_per_row, uint32_t max_rows, double expected_rows,
                                                     double tile_ns) const {
  const uint64_t max_tiles = uint64_t{tiles_per_row} * max_rows;
  const auto most = static_cast<uint32_t>(std::min<uint64_t>(plan_.options_.num_workers, max_tiles));
  const uint32_t parts = costs_.choose_parts(tiles_per_row * expected_rows, tile_ns, most);
  std::vector<Share> shares;
  for (uint32_t i = 0; i < parts; ++i)
    shares.push_back({i, i, parts, tiles_per_row, std::ceil(tiles_per_row * expected_rows / parts)});
  return shares;
}

void PlanBuilder::add_contiguous(TaskKind kind, uint16_t layer_idx, double tile_ns) {
  add_phase(kind, layer_idx, contiguous(num_tiles(plan_.shape_, kind, layer_idx), tile_ns), tile_ns);
}

void PlanBuilder::add_strided(TaskKind kind, uint16_t layer_idx, uint32_t tiles_per_row, uint32_t max_rows,
                              double expected_rows, double tile_ns, bool mlp_norm) {
  add_phase(kind, layer_idx, strided(tiles_per_row, max_rows, expected_rows, tile_ns), tile_ns, mlp_norm);
}

void PlanBuilder::add_phase(TaskKind kind, uint16_t layer_idx, const std::vector<Share>& shares, double tile_ns,
                            bool mlp_norm) {
  const uint32_t counter = static_cast<uint32_t>(plan_.counters_.size());
  const bool fused = fuse_norms_ && takes_norm(kind);
  const bool ends_layer = kind == TaskKind::down_proj || kind == TaskKind::expert_down;
  const bool captures = ends_layer && capture_index(plan_.shape_, layer_idx) >= 0;
  const bool from_block = kind == TaskKind::embed && plan_.options_.is_round;
  std::vector<bool> producers(lists_.size(), false);
  for (const Share& share : shares) {
    Task task{};
    task.kind = kind;
    task.layer_idx = layer_idx;
    task.flags = static_cast<uint16_t>((fused ? kFusedNorm : 0) | (mlp_norm ? kMlpNorm : 0) |
                                       (captures ? kCapture : 0) | (from_block ? kFromBlock : 0));
    task.tile_first = share.tile_first;
    task.tile_stride = share.tile_stride;
    task.tile_end = share.tile_end;
    const TaskFields fields = expected_fields(task);
    task.input = fields.input, task.input2 = fields.input2;
    task.output = fields.output, task.output2 = fields.output2;
    add_waits(share.worker_idx, task);
    task.signal_counter = counter;
    task.cost_ns = costs_.task_ns(tile_ns, share.num_tiles);
    lists_[share.worker_idx].push_back(task);
    producers[share.worker_idx] = true;
  }
  plan_.counters_.push_back({stage_name({kind, layer_idx, mlp_norm}), static_cast<uint32_t>(shares.size())});
  sources_ = {{counter, std::move(producers)}};
}

void PlanBuilder::add_waits(uint32_t worker_idx, Task& task) const {
  task.waits[0] = task.waits[1] = {kNoCounter, 0};
  if (sources_.empty()) task.waits[task.num_waits++] = {plan_.gate_counter_, 0};
  for (const Source& source : sources_) {
    const CounterInfo& info = plan_.counters_[source.counter];
    // Its own earlier tasks need no counter: a worker runs its list in order. Words of a tag edge it reads like others.
    const bool only_own = source.producers[worker_idx] && info.total == 1;
    if (info.kind == CounterInfo::Kind::tag || !only_own) task.waits[task.num_waits++] = {source.counter, info.total};
  }
}

void PlanBuilder::add_norm(uint16_t layer_idx, bool mlp_norm) {
  if (fuse_norms_) return;
  const uint32_t tokens = plan_.options_.max_tokens;
  add_strided(TaskKind::rms_norm, layer_idx, 1, tokens, tokens, costs_.norm_tile(), mlp_norm);
}

void PlanBuilder::add_moe(uint16_t layer_idx) {
  const PlanShape& shape = plan_.shape_;
  const uint32_t tokens = plan_.options_.max_tokens;
  const Source before = sources_.front();
  add_contiguous(TaskKind::router, layer_idx, costs_.matrix_tile(PackedFormat::f32, config_.hidden_size, tokens));
  const double logits = static_cast<double>(tokens) * shape.num_experts;
  add_phase(TaskKind::select_experts, layer_idx, one_worker(), costs_.small_tile(4.0 * logits, 32.0 * logits));
  const Source route = sources_.front();
  const bool has_tags = plan_.options_.tag_edges && uint64_t{tokens} * shape.experts_per_token <= kMaxTaggedSlots;
  if (has_tags) {
    plan_.counters_.back().kind = CounterInfo::Kind::tag;
    plan_.counters_.back().buffer = kRoute;
    // Rows, and `act` free of its last readers. What came before the route, the router's reads among it, the list of
    // worker 0 orders: it publishes, and has a share of the experts.
    sources_ = {before, route};
  }
  const uint32_t num_pairs = num_tiles(shape, TaskKind::expert_gate_up, layer_idx);
  const uint32_t max_active = max_active_experts(shape, tokens);
  if (!num_expert_shares_)
    num_expert_shares_ =
        choose_expert_shares(num_pairs, plan_.options_.num_workers, max_active, costs_.expert_tile_price());
  add_strided(TaskKind::expert_gate_up, layer_idx, num_expert_shares_, max_active, costs_.expected_active_experts(),
              costs_.expert_gate_up_pair() * num_pairs / num_expert_shares_);
  if (has_tags) sources_.push_back(route);
  add_contiguous(TaskKind::expert_down, layer_idx, costs_.expert_down_tile());
}

void PlanBuilder::add_dense(uint16_t layer_idx) {
  // A tile: 16 gate rows and 16 up rows.
  add_contiguous(TaskKind::gate_up_proj, layer_idx,
                 2 * costs_.layer_matrix(layer_idx, "mlp.gate_proj", config_.hidden_size));
  add_contiguous(TaskKind::down_proj, layer_idx,
                 costs_.layer_matrix(layer_idx, "mlp.down_proj", config_.intermediate_size));
}

/// The last phase: it signals the gate instead of a counter of its own.
void PlanBuilder::add_sampling(TaskKind kind, double share_ns) {
  const uint32_t num_shares = plan_.options_.sample_by_all ? plan_.options_.num_workers : 1;
  std::vector<Share> shares;
  for (uint32_t i = 0; i < num_shares; ++i) shares.push_back({i, i, num_shares, num_shares, 1.0});
  add_phase(kind, kNoLayer, shares, share_ns);
  plan_.counters_.pop_back();
  plan_.counters_[plan_.gate_counter_].total = num_shares;
  for (uint32_t i = 0; i < num_shares; ++i) lists_[i].back().signal_counter = plan_.gate_counter_;
}

uint32_t PlanBuilder::attention_shares(const LayerConfig& layer, uint32_t num_rows) const {
  const PlanOptions& options = plan_.options_;
  // As many as workers, as long as there are heads: each has the same heads of all rows.
  if (options.attention_split_keys == 0) return std::min(options.num_workers, layer.num_q_heads);
  // A window has few splits, and every part of one brings the row's q. A share is also one of q heads (see task.h), so
  // there are no more parts than those.
  const uint32_t splits = layer.window_tokens ? layer.window_tokens / options.attention_split_keys : ~0u;
  const uint32_t workers_per_head = options.num_workers / (num_rows * layer.num_kv_heads);
  return layer.num_kv_heads * std::max(1u, std::min({splits, workers_per_head, layer.q_per_kv()}));
}

void PlanBuilder::add_layer(uint32_t index) {
  const uint16_t layer_idx = static_cast<uint16_t>(index);
  const LayerConfig& layer = config_.layers[index];
  const uint32_t tokens = plan_.options_.max_tokens;
  add_norm(layer_idx, false);
  add_contiguous(TaskKind::qkv_proj, layer_idx, costs_.layer_matrix(index, "self_attn.q_proj", config_.hidden_size));
  const uint32_t shares = attention_shares(layer, tokens);
  add_strided(TaskKind::attention, layer_idx, shares, tokens, tokens, costs_.attention_tile(layer, shares));
  add_contiguous(TaskKind::o_proj, layer_idx,
                 costs_.layer_matrix(index, "self_attn.o_proj", layer.num_q_heads * layer.v_head_dim));
  add_norm(layer_idx, true);
  if (layer.is_moe) add_moe(layer_idx);
  else add_dense(layer_idx);
}

void PlanBuilder::finish() {
  plan_.tasks_ = std::make_shared<std::vector<Task>>();
  plan_.worker_begin_ = {0};
  for (const std::vector<Task>& list : lists_) {
    plan_.tasks_->insert(plan_.tasks_->end(), list.begin(), list.end());
    plan_.worker_begin_.push_back(static_cast<uint32_t>(plan_.tasks_->size()));
  }
}

Plan PlanBuilder::build() {
  const PlanOptions& options = plan_.options_;
  fuse_norms_ = options.fuse_norm == PlanOptions::FuseNorm::yes ||
                (options.fuse_norm == PlanOptions::FuseNorm::automatic && costs_.should_fuse_norms());
  make_shape();
  check_shape();
  make_buffers();
  lists_.resize(options.num_workers);
  plan_.counters_.push_back({"step", 0});  // the gate
  plan_.gate_counter_ = 0;

  if (draft_) add_context();
  if (draft_ && options.is_round) add_draft();
  const uint32_t tokens = options.max_tokens;
  add_strided(TaskKind::embed, kNoLayer, 1, tokens, tokens, costs_.small_tile(4.0 * config_.hidden_size));
  for (uint32_t l = 0; l < config_.num_layers; ++l) add_layer(l);
  add_norm(kNoLayer, false);
  // An F32 head takes twice as long; every worker's share of it does, so the split stays the same.
  add_contiguous(TaskKind::lm_head, kNoLayer,
                 costs_.matrix_tile(PackedFormat::bf16, config_.hidden_size, options.max_logit_rows));
  const double logits = static_cast<double>(options.max_logit_rows) * config_.vocab_size;
  const double share = logits / (options.sample_by_all ? options.num_workers : 1);
  if (options.is_round) add_sampling(TaskKind::accept, costs_.small_tile(8.0 * share, 8.0 * share));
  else add_sampling(TaskKind::sample, costs_.small_tile(4.0 * share, 4.0 * share));
  finish();
  return plan_;
}

Plan Plan::build(const ModelConfig& config, const PlanOptions& options, const DraftConfig* draft) {
  return PlanBuilder(config, options, draft).build();
}

}  // namespace mimo_rt

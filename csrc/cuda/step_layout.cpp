#include "cuda/step_layout.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/checks.h"
#include "cuda/persistent_params.h"
#include "plan/buffers.h"
#include "plan/kinds.h"

namespace mimo_rt::cuda {
namespace {

void check_draft(const Plan& plan, const char* where) {
  const PlanShape::Draft& draft = plan.shape().draft;
  if (draft.num_layers == 0) return;
  MIMO_RT_CHECK(draft.block_size <= kMaxBlockTokens, unsupported_shape, where,
                "draft block_size: expected at most ", kMaxBlockTokens, ", got ", draft.block_size);
  MIMO_RT_CHECK(plan.options().max_context_rows <= kMaxStepTokens, unsupported_shape, where,
                "plan.max_context_rows: expected at most ", kMaxStepTokens, ", got ",
                plan.options().max_context_rows);
}

/// Of each layer the tag edge that its select_experts task signals.
std::vector<uint32_t> tagged_routes(const Plan& plan) {
  std::vector<uint32_t> counters(plan.shape().layers.size(), kNoCounter);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w))
      if (task.kind == TaskKind::select_experts && task.signal_counter != kNoCounter &&
          plan.counters()[task.signal_counter].kind == CounterInfo::Kind::tag)
        counters[task.layer_idx] = task.signal_counter;
  return counters;
}

/// The shares of a kv head count each other, so all tasks of a layer must agree how many there are.
void check_attention_shares(const Plan& plan, const char* where) {
  std::map<std::pair<TaskKind, uint16_t>, uint32_t> shares;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      const bool is_draft = task.kind == TaskKind::draft_attention;
      if (!is_draft && task.kind != TaskKind::attention) continue;
      const uint32_t num_kv_heads =
          is_draft ? plan.shape().draft.num_kv_heads : plan.shape().layers[task.layer_idx].num_kv_heads;
      const uint32_t expected = shares.try_emplace({task.kind, task.layer_idx}, task.tile_end).first->second;
      MIMO_RT_CHECK(task.tile_end == expected && expected % num_kv_heads == 0, unsupported_shape, where, "worker ", w,
                    ", ", task_kind_name(task.kind), ": expected kv heads or parts of them as shares ",
                    "(PlanOptions::attention_split_keys), the same in all tasks of a layer, got ", task.tile_end,
                    " shares of ", num_kv_heads, " kv heads");
    }
}

}  // namespace

uint32_t num_head_tasks(const Plan& plan, TaskKind kind) {
  uint32_t num_tasks = 0;
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      if (task.kind != kind) continue;
      MIMO_RT_CHECK(w == num_tasks, unsupported_shape, "cuda.check_device_plan", "worker ", w, ", ",
                    task_kind_name(kind), ": expected one task each on the first workers, got one after that of worker ",
                    static_cast<int64_t>(num_tasks) - 1);
      ++num_tasks;
    }
  return num_tasks;
}

void check_device_plan(const Plan& plan) {
  constexpr const char* kWhere = "cuda.check_device_plan";
  check_draft(plan, kWhere);
  const uint32_t max_rows = plan.options().is_round ? kMaxBlockTokens : kMaxStepTokens;
  MIMO_RT_CHECK(plan.options().max_tokens <= max_rows, unsupported_shape, kWhere,
                "plan.max_tokens: expected at most ", max_rows, ", got ", plan.options().max_tokens);
  const uint32_t split_keys = plan.options().attention_split_keys;
  MIMO_RT_CHECK(split_keys != 0 && split_keys % kChunkKeys == 0, unsupported_shape, kWhere,
                "plan.attention_split_keys: expected a multiple of ", kChunkKeys, ", got ", split_keys);
  MIMO_RT_CHECK(plan.shape().vocab_size <= kMaxVocabSize, unsupported_shape, kWhere,
                "vocab_size: expected at most ", kMaxVocabSize, ", got ", plan.shape().vocab_size);
  check_attention_shares(plan, kWhere);
  (void)num_head_tasks(plan, TaskKind::lm_head);
  (void)num_head_tasks(plan, TaskKind::draft_lm_head);
  for (const CounterInfo& counter : plan.counters())
    MIMO_RT_CHECK(counter.kind != CounterInfo::Kind::tag || counter.buffer == kRoute, unsupported_shape, kWhere,
                  "tag edge '", counter.name, "': expected that of a route, got buffer ", counter.buffer);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      const auto where = [&] { return concat("worker ", w, ", ", task_kind_name(task.kind)); };
      MIMO_RT_CHECK(!(task.flags & kFusedNorm), unsupported_shape, kWhere, where(),
                    ": expected norms of their own (PlanOptions::FuseNorm::no), got a fused one");
      MIMO_RT_CHECK(trip_count(task.kind) != TripCount::once || counts_shares(task.kind) || task.tile_stride == 1,
                    unsupported_shape, kWhere, where(), ": expected neighbouring tiles, got stride ",
                    task.tile_stride);
    }
}

StageList::StageList(const Plan& plan) {
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      const auto found = std::find_if(first.begin(), first.end(), [&](const Task* other) {
        return stage_of(*other) == stage_of(task);
      });
      stage_idx.push_back(static_cast<uint32_t>(found - first.begin()));
      if (found == first.end()) first.push_back(&task);
    }
}

AttentionParams attention_shape(const LayerConfig& layer, const KvView& view, uint32_t split_keys,
                                uint32_t max_context) {
  AttentionParams p;
  p.kv = view;
  p.num_rows = 1;
  p.num_q_heads = layer.num_q_heads;
  p.num_kv_heads = layer.num_kv_heads;
  p.qk_head_dim = layer.qk_head_dim;
  p.v_head_dim = layer.v_head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(layer.qk_head_dim));
  p.window_tokens = layer.window_tokens;
  p.split_keys = split_keys;
  p.max_context = max_context;
  return p;
}

uint32_t row_partial_floats(const AttentionParams& row) {
  const uint64_t num_floats = (attention_partial_floats(row) + 3) / 4 * 4;
  MIMO_RT_CHECK(num_floats <= UINT32_MAX, capacity, "cuda.StepLayout", "partial results of attention: expected at most ",
                UINT32_MAX, " numbers of a row, got ", num_floats, ". Lower max_context.");
  return static_cast<uint32_t>(num_floats);
}

StepLayout::StepLayout(const Plan& plan, const CudaWeights& weights, const CudaDraftWeights* draft_weights,
                       const KvLayout& cache) {
  BlockBuilder block(bytes);
  const uint64_t num_layers = plan.shape().layers.size();
  const uint64_t max_tokens = plan.options().max_tokens;
  const uint64_t max_logit_rows = plan.options().max_logit_rows;
  arena = block.add(plan.arena_bytes());
  logits = block.add(plan.buffers()[kLogits].bytes);
  results = bytes;
  sampled = block.add(4 * max_logit_rows);
  active_experts = block.add(4 * num_layers);
  results_end = bytes;
  tables = block.add(sizeof(StepTables));
  token_ids = block.add(4 * max_tokens);
  positions = block.add(4 * max_tokens);
  logit_rows = block.add(4 * max_logit_rows);
  sample_positions = block.add(4 * max_logit_rows);
  const bool is_round = plan.options().is_round;
  sample_rows = block.add(is_round ? 0 : sizeof(SampleParams) * max_logit_rows);
  round = block.add(is_round ? sizeof(RoundTables) : 0);
  if (draft_weights) draft.add_inputs(block, plan);
  inputs_end = bytes;
  k_rows = block.add(8 * max_tokens * num_layers);
  v_rows = block.add(8 * max_tokens * num_layers);
  uint32_t most_kv_heads = plan.shape().draft.num_kv_heads;
  for (uint32_t l = 0; l < num_layers; ++l) {
    const CudaLayerWeights& layer = weights.layer(l);
    qkv_tiles.push_back(block.add(sizeof(QkvTile) * layer.qkv_tiles.size()));
    const AttentionParams call = attention_shape(layer.config, cache.view(l, 0, nullptr),
                                                 plan.options().attention_split_keys, cache.options().max_context);
    partial_floats = std::max(partial_floats, row_partial_floats(call));
    most_kv_heads = std::max(most_kv_heads, call.num_kv_heads);
    const RotaryKind kind{layer.config.rope_theta, layer.config.rotary_dim};
    const auto found = std::find(rotary_kinds.begin(), rotary_kinds.end(), kind);
    rotary_of_layer.push_back(static_cast<uint32_t>(found - rotary_kinds.begin()));
    if (found == rotary_kinds.end()) rotary_kinds.push_back(kind);
  }
  arrived = block.add(4 * max_tokens * most_kv_heads);
  arrived_shares = block.add(4 * (max_logit_rows + 1));
  sampled_rows = block.add(sizeof(SampledRows));
  num_head_tasks = cuda::num_head_tasks(plan, TaskKind::lm_head);
  rotary = block.add(sizeof(RotaryTable) * rotary_kinds.size());
  const uint64_t num_coarse = num_coarse_positions(cache);
  for (const RotaryKind& kind : rotary_kinds) {
    coarse.push_back(block.add(8 * num_coarse * kind.rotary_dim));
    fine.push_back(block.add(8 * uint64_t{kFinePositions} * kind.rotary_dim));
    cos_sin.push_back(block.add(4 * max_tokens * kind.rotary_dim));
  }
  if (draft_weights) draft.add_rest(block, plan, *draft_weights, cache);
  tasks = block.add(sizeof(Task) * plan.num_tasks());
  worker_begin = block.add(4 * (uint64_t{plan.num_workers()} + 1));
  operand_idx = block.add(4 * plan.num_tasks());
  operands = block.add(sizeof(TaskOperands) * StageList(plan).first.size());
  counters = block.add(sizeof(CounterCell) * plan.counters().size());
  counter_totals = block.add(4 * plan.counters().size());
  stop = block.add(4);
  route_counters = tagged_routes(plan);
  const bool has_tags = std::ranges::any_of(route_counters, [](uint32_t c) { return c != kNoCounter; });
  if (has_tags) route_words = RouteEdge::num_words(static_cast<uint32_t>(max_tokens) * plan.shape().experts_per_token);
  route_rows = block.add(sizeof(TaggedWord) * 2 * route_words * num_layers);
  image_bytes = bytes;
  sample_scratch = block.add(SampleScratch::bytes(plan.options().max_logit_rows, plan.shape().vocab_size, num_head_tasks));
  partials = block.add(4 * max_tokens * uint64_t{partial_floats});
  if (draft_weights) draft.add_scratch(block, plan, *draft_weights, cache);
}

}  // namespace mimo_rt::cuda

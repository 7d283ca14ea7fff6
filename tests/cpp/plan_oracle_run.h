// Runs plans on plan_oracle.h's machine: the model's own order as reference, then every order that matters.
#pragma once

#include "plan_oracle.h"

namespace plan_oracle {

/// The model as a list of whole ops, written down without the planner.
inline std::vector<Task> model_program(const Plan& plan, bool fused) {
  const PlanShape& shape = plan.shape();
  const PlanShape::Draft& draft = shape.draft;
  const bool is_round = plan.options().is_round;
  std::vector<Task> program;
  const auto op = [&](TaskKind kind, uint32_t layer, uint32_t tiles, std::array<uint16_t, 4> ids, uint16_t flags = 0) {
    Task task{};
    task.kind = kind;
    task.layer_idx = static_cast<uint16_t>(layer);
    task.flags = flags;
    task.tile_stride = 1;
    task.tile_end = tiles;
    task.input = ids[0], task.input2 = ids[1], task.output = ids[2], task.output2 = ids[3];
    program.push_back(task);
  };
  const auto groups = [](uint32_t rows) { return (rows + kTileRows - 1) / kTileRows; };
  const uint16_t none = kNoBuffer, rows = fused ? kX : kH, flag = fused ? kFusedNorm : 0;
  const auto norm = [&](uint32_t layer, uint16_t flags) {
    if (!fused) op(TaskKind::rms_norm, layer, 1, {kX, none, kH, none}, flags);
  };
  const uint32_t hidden = groups(shape.hidden_size);
  if (draft.num_layers) {
    op(TaskKind::context_fc, kNoLayer, hidden, {kFeatures, none, kContext, none});
    if (!fused) op(TaskKind::context_norm, kNoLayer, 1, {kContext, none, kContextH, none});
    op(TaskKind::context_kv, kNoLayer, draft.num_layers * 2 * draft.num_kv_heads,
       {fused ? kContext : kContextH, none, kContextKv, none}, flag);
  }
  if (is_round && draft.num_layers) {
    op(TaskKind::draft_embed, kNoLayer, 1, {kBlock, none, kDraftX, none});
    const uint16_t draft_rows = fused ? kDraftX : kDraftH;
    const auto draft_norm = [&](uint32_t layer, uint16_t flags) {
      if (!fused) op(TaskKind::draft_norm, layer, 1, {kDraftX, none, kDraftH, none}, flags);
    };
    for (uint32_t l = 0; l < draft.num_layers; ++l) {
      draft_norm(l, 0);
      op(TaskKind::draft_qkv_proj, l, draft.num_q_heads + 2 * draft.num_kv_heads,
         {draft_rows, none, kDraftQ, kDraftKv}, flag);
      op(TaskKind::draft_attention, l, draft.num_q_heads, {kDraftQ, kDraftKv, kDraftAttn, none});
      op(TaskKind::draft_o_proj, l, hidden, {kDraftAttn, none, kDraftX, none});
      draft_norm(l, kMlpNorm);
      op(TaskKind::draft_gate_up_proj, l, groups(draft.intermediate_size), {draft_rows, none, kDraftAct, none}, flag);
      op(TaskKind::draft_down_proj, l, hidden, {kDraftAct, none, kDraftX, none});
    }
    draft_norm(kNoLayer, 0);
    op(TaskKind::draft_lm_head, kNoLayer, groups(draft.vocab_size), {draft_rows, none, kDraftLogits, none}, flag);
    op(TaskKind::draft_sample, kNoLayer, 1, {kDraftLogits, none, kBlock, none});
  }
  op(TaskKind::embed, kNoLayer, 1, {is_round ? kBlock : kTokens, none, kX, none}, is_round ? kFromBlock : 0);
  for (uint32_t l = 0; l < shape.layers.size(); ++l) {
    const PlanShape::Layer& layer = shape.layers[l];
    LayerConfig config;
    config.num_q_heads = layer.num_q_heads, config.num_kv_heads = layer.num_kv_heads;
    config.qk_head_dim = layer.qk_head_dim, config.v_head_dim = layer.v_head_dim, config.rotary_dim = layer.rotary_dim;
    const uint16_t kv = static_cast<uint16_t>(kFirstKv + l);
    const std::vector<uint32_t>& ids = draft.target_layer_ids;
    const bool is_captured = std::find(ids.begin(), ids.end(), l) != ids.end();
    const uint16_t features = is_captured ? uint16_t{kFeatures} : none, capture = is_captured ? kCapture : 0;
    norm(l, 0);
    op(TaskKind::qkv_proj, l, static_cast<uint32_t>(qkv_tiles(config).size()), {rows, none, kQ, kv}, flag);
    op(TaskKind::attention, l, layer.num_q_heads, {kQ, kv, kAttn, none});
    op(TaskKind::o_proj, l, hidden, {kAttn, none, kX, none});
    norm(l, kMlpNorm);
    if (layer.is_moe) {
      op(TaskKind::router, l, groups(shape.num_experts), {rows, none, kRouterLogits, none}, flag);
      op(TaskKind::select_experts, l, 1, {kRouterLogits, none, kRoute, none});
      op(TaskKind::expert_gate_up, l, 1, {rows, kRoute, kAct, none}, flag);
      op(TaskKind::expert_down, l, hidden, {kAct, kRoute, kX, features}, capture);
    } else {
      op(TaskKind::gate_up_proj, l, groups(shape.dense_width), {rows, none, kAct, none}, flag);
      op(TaskKind::down_proj, l, hidden, {kAct, none, kX, features}, capture);
    }
  }
  norm(kNoLayer, 0);
  op(TaskKind::lm_head, kNoLayer, groups(shape.vocab_size), {rows, none, kLogits, none}, flag);
  if (is_round) op(TaskKind::accept, kNoLayer, 1, {kLogits, draft.num_layers ? uint16_t{kDraftLogits} : none, kBlock, none});
  else op(TaskKind::sample, kNoLayer, 1, {kLogits, none, kSampled, none});
  return program;
}

/// The right outputs of a scenario; `plan` gives shapes and buffers only and must be a sound one.
inline uint64_t expected_outputs(const Plan& plan, bool fused, const Scenario& scenario) {
  Machine machine(plan, scenario);
  for (uint32_t epoch = 0; epoch < kNumEpochs; ++epoch)
    for (const Task& task : model_program(plan, fused)) machine.execute(task, epoch);
  return machine.outputs();
}

struct Frozen {
  uint32_t worker_idx, task_idx;  ///< of epoch 0
};

/// Whose turn it is, from task to task: each worker goes through its list, epoch after epoch.
using Order = std::vector<uint32_t>;

/// The order of two epochs in which every worker goes as far as it can, one after the other; worker `frozen` stops
/// before its task until nobody else can go on.
inline Order order_of(const Plan& plan, const std::optional<Frozen>& frozen) {
  Order order;
  std::vector<uint64_t> counts(plan.counters().size(), 0);
  std::vector<uint32_t> next(plan.num_workers(), 0), epoch(plan.num_workers(), 0);
  bool is_frozen = frozen.has_value();
  const auto can_run = [&](uint32_t w) {
    if (is_frozen && w == frozen->worker_idx && epoch[w] == 0 && next[w] == frozen->task_idx) return false;
    const Task& task = plan.tasks(w)[next[w]];
    for (uint32_t i = 0; i < std::min<uint32_t>(task.num_waits, 2); ++i) {
      const Wait& wait = task.waits[i];
      if (wait.counter >= counts.size()) throw Violation("no such counter");
      if (counts[wait.counter] < uint64_t{epoch[w]} * plan.counters()[wait.counter].total + wait.value) return false;
    }
    return true;
  };
  for (bool moved = true; moved || is_frozen;) {
    if (!moved) is_frozen = false;
    moved = false;
    for (uint32_t w = 0; w < plan.num_workers(); ++w) {
      while (epoch[w] < kNumEpochs && !plan.tasks(w).empty() && can_run(w)) {
        const Task& task = plan.tasks(w)[next[w]];
        order.push_back(w);
        if (task.signal_counter < counts.size()) ++counts[task.signal_counter];
        if (++next[w] == plan.tasks(w).size()) next[w] = 0, ++epoch[w];
        moved = true;
      }
    }
  }
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    if (!plan.tasks(w).empty() && epoch[w] < kNumEpochs) throw Violation("deadlock");
  return order;
}

inline uint64_t run_plan(const Plan& plan, const Scenario& scenario, const Order& order, SeenOrder* seen = nullptr) {
  Machine machine(plan, scenario);
  std::vector<uint32_t> num_run(plan.num_workers(), 0);
  for (const uint32_t w : order) {
    const auto num_tasks = static_cast<uint32_t>(plan.tasks(w).size());
    const Task& task = plan.tasks(w)[num_run[w] % num_tasks];
    if (seen) seen->begin(w, task);
    machine.execute(task, num_run[w] / num_tasks, seen);
    if (seen) seen->end(task);
    ++num_run[w];
  }
  return machine.outputs();
}

/// What is wrong with the plan, or an empty string. The scenarios hold the right outputs.
inline std::string find_fault(const Plan& plan, const std::vector<Scenario>& scenarios) {
  bool has_tags = false;
  for (uint32_t c = 0; c < plan.counters().size(); ++c) has_tags |= is_tag(plan, c);
  std::set<Order> orders;  // many frozen workers make the same one
  const auto is_right = [&](const std::optional<Frozen>& frozen) {
    const auto [order, is_new] = orders.insert(order_of(plan, frozen));
    return !is_new || std::ranges::all_of(scenarios, [&](const Scenario& scenario) {
      SeenOrder seen(plan);
      return run_plan(plan, scenario, *order, has_tags && !frozen ? &seen : nullptr) == scenario.expected;
    });
  };
  try {
    if (!is_right(std::nullopt)) return "wrong result in list order";
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      for (uint32_t i = 0; i < plan.tasks(w).size(); ++i)
        if (!is_right(Frozen{w, i}))
          return "wrong result with worker " + std::to_string(w) + " frozen before task " + std::to_string(i);
  } catch (const Violation& violation) {
    return violation.what();
  }
  return "";
}

}  // namespace plan_oracle

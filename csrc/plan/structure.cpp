#include "plan/structure.h"

#include "core/checks.h"
#include "plan/buffers.h"
#include "plan/kinds.h"
#include "plan/route_table.h"
#include "plan/task.h"

#include <mimo_rt/draft.h>

#include <algorithm>
#include <span>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Plan.verify";
constexpr uint64_t kArenaAlignment = 64;

uint32_t expected_element_bytes(uint16_t buffer) {
  switch (buffer) {
    case kTokens:
    case kRouterLogits:
    case kRoute:
    case kLogits:
    case kSampled:
    case kBlock:
    case kDraftLogits: return 4;
    default: return 2;
  }
}

BufferInfo::Space expected_space(uint16_t buffer) {
  switch (buffer) {
    case kTokens: return BufferInfo::Space::input;
    case kLogits:
    case kSampled:
    case kBlock: return BufferInfo::Space::output;
    case kFeatures:
    case kContextKv: return BufferInfo::Space::kv;
    default: return buffer >= kFirstKv ? BufferInfo::Space::kv : BufferInfo::Space::arena;
  }
}

void check_buffer(const Plan& plan, uint16_t id) {
  const BufferInfo& info = plan.buffers()[id];
  const auto name = [&] { return concat("buffer ", id, " '", info.name, "' "); };
  MIMO_RT_CHECK(info.space == expected_space(id), plan_invalid, kWhere, name(), "is in the wrong space");
  MIMO_RT_CHECK(info.element_bytes == expected_element_bytes(id), plan_invalid, kWhere, name(),
                "element_bytes: expected ", expected_element_bytes(id), ", got ", info.element_bytes);
  uint64_t needed = 0;
  MIMO_RT_CHECK(!__builtin_mul_overflow(uint64_t{info.rows} * info.cols, info.element_bytes, &needed), plan_invalid,
                kWhere, name(), "is too large: ", info.rows, " x ", info.cols, " elements");
  MIMO_RT_CHECK(info.bytes >= needed, plan_invalid, kWhere, name(), "bytes: expected at least ", needed, ", got ",
                info.bytes);
  if (info.space != BufferInfo::Space::arena) return;
  MIMO_RT_CHECK(info.offset % kArenaAlignment == 0, plan_invalid, kWhere, name(), "offset: expected a multiple of ",
                kArenaAlignment, ", got ", info.offset);
  MIMO_RT_CHECK(info.bytes <= plan.arena_bytes() && info.offset <= plan.arena_bytes() - info.bytes, plan_invalid,
                kWhere, name(), "ends outside the arena of ", plan.arena_bytes(), " bytes: offset ", info.offset,
                ", bytes ", info.bytes);
}

/// The step's input is not among the accesses that Plan::verify() follows.
void check_tokens(const Plan& plan) {
  const BufferInfo& info = plan.buffers()[kTokens];
  MIMO_RT_CHECK(info.rows >= plan.options().max_tokens, plan_invalid, kWhere, "buffer '", info.name,
                "' rows: expected at least ", plan.options().max_tokens, ", got ", info.rows);
  MIMO_RT_CHECK(info.cols >= 1, plan_invalid, kWhere, "buffer '", info.name,
                "' cols: expected at least 1, got ", info.cols);
}

/// What domain_rows() takes for granted.
void check_draft(const Plan& plan) {
  const PlanShape::Draft& draft = plan.shape().draft;
  const PlanOptions& options = plan.options();
  const bool has_draft = draft.num_layers != 0;
  MIMO_RT_CHECK(has_draft == (options.max_context_rows != 0), plan_invalid, kWhere,
                "max_context_rows: expected ", has_draft ? "> 0" : "0, for there is no draft", ", got ",
                options.max_context_rows);
  if (!options.is_round) return;
  const uint32_t least = has_draft ? 2 : 1;
  MIMO_RT_CHECK(draft.block_size >= least && draft.block_size <= kMaxBlockSize &&
                    options.max_tokens == draft.block_size && options.max_logit_rows == draft.block_size,
                plan_invalid, kWhere, "a round: expected a block size, ", least, "..", kMaxBlockSize,
                ", that is max_tokens and max_logit_rows, got block size ", draft.block_size, ", ",
                options.max_tokens, " tokens, ", options.max_logit_rows, " logit rows");
}

void check_buffers(const Plan& plan) {
  const std::vector<BufferInfo>& buffers = plan.buffers();
  const size_t expected = kFirstKv + plan.shape().layers.size();
  MIMO_RT_CHECK(buffers.size() == expected, plan_invalid, kWhere, "expected ", expected, " buffers, got ",
                buffers.size());
  std::vector<const BufferInfo*> in_arena;
  for (uint16_t id = 0; id < buffers.size(); ++id) {
    check_buffer(plan, id);
    if (buffers[id].space == BufferInfo::Space::arena && buffers[id].bytes) in_arena.push_back(&buffers[id]);
  }
  check_tokens(plan);
  std::sort(in_arena.begin(), in_arena.end(),
            [](const BufferInfo* a, const BufferInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < in_arena.size(); ++i)
    MIMO_RT_CHECK(in_arena[i - 1]->offset + in_arena[i - 1]->bytes <= in_arena[i]->offset, plan_invalid, kWhere,
                  "buffers '", in_arena[i - 1]->name, "' and '", in_arena[i]->name, "' overlap in the arena");
  if (!plan.shape().num_experts) return;
  const uint64_t slots = uint64_t{plan.options().max_tokens} * plan.shape().experts_per_token;
  const uint64_t route = RouteTable::bytes(plan.shape().num_experts, static_cast<uint32_t>(slots));
  MIMO_RT_CHECK(uint64_t{buffers[kRoute].cols} * buffers[kRoute].element_bytes >= route, plan_invalid, kWhere,
                "buffer 'route': expected at least ", route, " bytes per row, got ", buffers[kRoute].cols, " words");
}

bool layer_fits(const Plan& plan, const Task& task) {
  const PlanShape& shape = plan.shape();
  const bool is_round = plan.options().is_round;
  const bool in_layer = task.layer_idx != kNoLayer;
  const Scope scope = scope_of(task.kind);
  if (scope == Scope::draft_layer || (scope == Scope::draft_norm && in_layer))
    return is_round && task.layer_idx < shape.draft.num_layers;
  if (in_layer && task.layer_idx >= shape.layers.size()) return false;
  switch (scope) {
    case Scope::model: return !in_layer;
    case Scope::norm: return in_layer || !(task.flags & kMlpNorm);
    case Scope::any_layer: return in_layer;
    case Scope::moe_layer: return in_layer && shape.layers[task.layer_idx].is_moe;
    case Scope::dense_layer: return in_layer && !shape.layers[task.layer_idx].is_moe;
    case Scope::step: return !in_layer && !is_round;
    case Scope::context: return !in_layer && shape.draft.num_layers != 0;
    case Scope::round: return !in_layer && is_round;
    case Scope::draft_norm: return is_round && !(task.flags & kMlpNorm);
    case Scope::draft_layer: break;
  }
  return false;
}

/// Flags that a task may have or not.
uint32_t allowed_flags(const Task& task) {
  return (takes_norm(task.kind) ? kFusedNorm : 0u) | (chooses_norm(task.kind) ? kMlpNorm : 0u);
}

uint32_t required_flags(const Plan& plan, const Task& task) {
  if (task.kind == TaskKind::embed) return plan.options().is_round ? kFromBlock : 0u;
  const bool ends_layer = task.kind == TaskKind::down_proj || task.kind == TaskKind::expert_down;
  return ends_layer && capture_index(plan.shape(), task.layer_idx) >= 0 ? kCapture : 0u;
}

bool is_tag(const Plan& plan, uint32_t counter) { return plan.counters()[counter].kind == CounterInfo::Kind::tag; }

/// A tag edge brings one task's output to tasks that read it.
void check_tag_waits(const Plan& plan, const Task& task, const std::string& who) {
  for (const Wait& wait : std::span(task.waits, task.num_waits)) {
    const CounterInfo& info = plan.counters()[wait.counter];
    MIMO_RT_CHECK(!is_tag(plan, wait.counter) ||
                      (wait.value == info.total && (task.input == info.buffer || task.input2 == info.buffer)),
                  plan_invalid, kWhere, who, "waits for the tags of '", info.name, "' to reach ", wait.value,
                  ": expected ", info.total, ", by a task that reads buffer ", info.buffer);
  }
  if (task.signal_counter == kNoCounter || !is_tag(plan, task.signal_counter)) return;
  const CounterInfo& info = plan.counters()[task.signal_counter];
  MIMO_RT_CHECK(task.output == info.buffer || task.output2 == info.buffer, plan_invalid, kWhere, who,
                "signals the tag edge '", info.name, "': expected a task that writes its buffer ", info.buffer);
}

void check_tag(const Plan& plan, uint32_t counter) {
  const CounterInfo& info = plan.counters()[counter];
  MIMO_RT_CHECK(info.total == 1 && counter != plan.gate_counter(), plan_invalid, kWhere, "tag edge '", info.name,
                "': expected one task that signals it, and not the gate, got ", info.total, " signals");
  MIMO_RT_CHECK(info.buffer < plan.buffers().size() && plan.buffers()[info.buffer].space == BufferInfo::Space::arena,
                plan_invalid, kWhere, "tag edge '", info.name, "' buffer: expected one in the arena, got ", info.buffer);
  const uint64_t max_slots = uint64_t{plan.options().max_tokens} * plan.shape().experts_per_token;
  MIMO_RT_CHECK(info.buffer != kRoute || max_slots <= kMaxTaggedSlots, plan_invalid, kWhere, "tag edge '", info.name,
                "': expected a route of at most ", kMaxTaggedSlots, " (token, expert) pairs, got ", max_slots);
}

/// A task must have something to do in the largest step, and nothing outside of it.
bool tiles_fit(const Plan& plan, const Task& task) {
  if (task.tile_stride < 1 || task.tile_end < 1) return false;
  const uint32_t tiles = num_tiles(plan.shape(), task.kind, task.layer_idx);
  const uint64_t first = task.tile_first, end = task.tile_end;
  if (counts_shares(task.kind)) return first < end && end == task.tile_stride && end <= plan.num_workers();
  const bool has_shares = task.kind == TaskKind::attention || task.kind == TaskKind::draft_attention;
  const bool fits_row = has_shares ? end <= tiles : end == tiles;
  switch (trip_count(task.kind)) {
    case TripCount::once: return end <= tiles && first < end;
    case TripCount::per_token: return fits_row && first < end * plan.options().max_tokens;
    case TripCount::per_active_expert:
      return end <= tiles && first < end * max_active_experts(plan.shape(), plan.options().max_tokens);
    case TripCount::per_context_row: return end == tiles && first < end * plan.options().max_context_rows;
    case TripCount::per_draft_row: return fits_row && first < end * plan.shape().draft.block_size;
  }
  return false;
}

void check_task(const Plan& plan, uint32_t worker_idx, uint32_t task_idx) {
  const Task& task = plan.tasks(worker_idx)[task_idx];
  const auto who = [&] { return task_name(plan, worker_idx, task_idx) + ' '; };
  MIMO_RT_CHECK(static_cast<uint16_t>(task.kind) < kNumTaskKinds, plan_invalid, kWhere, who(), "kind: expected < ",
                kNumTaskKinds, ", got ", static_cast<uint16_t>(task.kind));
  MIMO_RT_CHECK(layer_fits(plan, task), plan_invalid, kWhere, who(), "does not fit its layer or this kind of plan: ",
                "got layer ", task.layer_idx, ", flags ", task.flags);
  const uint32_t allowed = allowed_flags(task), required = required_flags(plan, task);
  MIMO_RT_CHECK((task.flags & ~allowed) == required, plan_invalid, kWhere, who(), "flags: expected ", required,
                " and a subset of ", allowed, ", got ", task.flags);
  MIMO_RT_CHECK(tiles_fit(plan, task), plan_invalid, kWhere, who(), "tiles: expected within ",
                num_tiles(plan.shape(), task.kind, task.layer_idx), " per count, got first ", task.tile_first,
                ", stride ", task.tile_stride, ", end ", task.tile_end);
  const TaskFields fields{task.input, task.input2, task.output, task.output2};
  MIMO_RT_CHECK(fields == expected_fields(task), plan_invalid, kWhere, who(), "has wrong buffers: input ", task.input,
                ", input2 ", task.input2, ", output ", task.output, ", output2 ", task.output2);
  MIMO_RT_CHECK(!task.reserved[0] && !task.reserved[1] && !task.reserved[2], plan_invalid, kWhere, who(),
                "reserved: expected 0");
  const std::vector<CounterInfo>& counters = plan.counters();
  MIMO_RT_CHECK(task.num_waits <= 2, plan_invalid, kWhere, who(), "num_waits: expected <= 2, got ", task.num_waits);
  for (uint32_t i = 0; i < task.num_waits; ++i) {
    const Wait& wait = task.waits[i];
    MIMO_RT_CHECK(wait.counter < counters.size(), plan_invalid, kWhere, who(), "waits for counter ", wait.counter,
                  ": expected < ", counters.size());
    MIMO_RT_CHECK(wait.value <= counters[wait.counter].total, plan_invalid, kWhere, who(), "waits for counter '",
                  counters[wait.counter].name, "' to reach ", wait.value, ": expected <= ",
                  counters[wait.counter].total);
  }
  MIMO_RT_CHECK(task.signal_counter == kNoCounter || task.signal_counter < counters.size(), plan_invalid, kWhere,
                who(), "signals counter ", task.signal_counter, ": expected < ", counters.size());
  check_tag_waits(plan, task, who());
}

/// The share that is done last sets up the next epoch before the gate has all signals: nobody else may work until then.
void check_counters(const Plan& plan) {
  const std::vector<CounterInfo>& counters = plan.counters();
  MIMO_RT_CHECK(plan.gate_counter() < counters.size(), plan_invalid, kWhere, "gate counter: expected < ",
                counters.size(), ", got ", plan.gate_counter());
  std::vector<uint64_t> signals(counters.size(), 0);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      if (task.signal_counter == kNoCounter) continue;
      MIMO_RT_CHECK(task.signal_counter != plan.gate_counter() || counts_shares(task.kind), plan_invalid, kWhere,
                    "worker ", w, ", ", task_kind_name(task.kind), " signals the gate: expected only sample or accept");
      ++signals[task.signal_counter];
    }
  for (size_t c = 0; c < counters.size(); ++c)
    MIMO_RT_CHECK(signals[c] == counters[c].total, plan_invalid, kWhere, "counter '", counters[c].name,
                  "' total: expected ", signals[c], " (the tasks that signal it), got ", counters[c].total);
  for (uint32_t c = 0; c < counters.size(); ++c)
    if (is_tag(plan, c)) check_tag(plan, c);
}

/// Each share once; who would wait for another is not among the edges.
void check_shares(const Plan& plan) {
  std::vector<uint32_t> num_tasks;  // of each share
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w)) {
      if (!counts_shares(task.kind)) continue;
      if (num_tasks.empty()) num_tasks.resize(task.tile_end);
      MIMO_RT_CHECK(task.tile_end == num_tasks.size() && num_tasks[task.tile_first]++ == 0, plan_invalid, kWhere,
                    "worker ", w, ", ", task_kind_name(task.kind), ": expected every share once, of ", num_tasks.size(),
                    " shares, got share ", task.tile_first, " of ", task.tile_end);
    }
  const auto missing = std::ranges::find(num_tasks, 0u);
  MIMO_RT_CHECK(missing == num_tasks.end(), plan_invalid, kWhere, "sample or accept: expected every share once, got none ",
                "with share ", missing - num_tasks.begin(), " of ", num_tasks.size());
}

}  // namespace

void check_structure(const Plan& plan) {
  MIMO_RT_CHECK(plan.num_workers() >= 1 && plan.num_workers() == plan.options().num_workers, plan_invalid, kWhere,
                "lists: expected ", plan.options().num_workers, ", got ", plan.num_workers());
  check_draft(plan);
  check_buffers(plan);
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i) check_task(plan, w, i);
  check_counters(plan);
  check_shares(plan);
}

}  // namespace mimo_rt

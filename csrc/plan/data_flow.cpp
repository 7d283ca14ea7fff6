#include "plan/data_flow.h"

#include "core/checks.h"
#include "plan/buffers.h"

#include <algorithm>
#include <span>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Plan.verify";

/// Whether the buffer's rows are wanted after the step.
bool leaves_step(const Plan& plan, uint16_t buffer) {
  switch (buffer) {
    case kSampled: return !plan.options().is_round;
    case kBlock: return plan.options().is_round;
    case kFeatures:
    case kContextKv: return plan.shape().draft.num_layers != 0;
    default: return buffer == kLogits || buffer >= kFirstKv;
  }
}

}  // namespace

DataFlow::DataFlow(const Plan& plan) : plan_(plan), model_(plan), buffers_(plan.buffers().size()) {
  for (uint32_t domain = 0; domain < kNumRowDomains; ++domain)
    row_sets_.emplace_back(domain_rows(plan, static_cast<RowDomain>(domain)));
}

std::string DataFlow::region(const Access& access) const {
  return concat('\'', plan_.buffers()[access.buffer].name, "' rows ", access.row_first, " step ", access.row_stride,
                ", cols [", access.col_begin, ", ", access.col_end, ')');
}

void DataFlow::check_bounds(const Actor& actor, const Access& access) const {
  const BufferInfo& info = plan_.buffers()[access.buffer];
  const uint64_t slots = uint64_t{plan_.options().max_tokens} * plan_.shape().experts_per_token;
  const uint64_t num_rows =
      access.domain == RowDomain::active_expert ? slots : domain_rows(plan_, access.domain);
  MIMO_RT_CHECK(num_rows <= info.rows && access.col_begin < access.col_end && access.col_end <= info.cols, plan_invalid,
                kWhere, task_name(plan_, actor.worker_idx, actor.task_idx), " goes out of its buffer at ",
                region(access), ": expected at least ", num_rows, " rows, got ", info.rows, " x ", info.cols);
}

void DataFlow::reset(View& view) const {
  Slab slab{view.cols, {}, {}};
  slab.pieces.push_back({RowSets::kAll, kNobody, 0, {}, {}});
  view.slabs.clear();
  view.slabs.emplace(0, std::move(slab));
}

DataFlow::View& DataFlow::view(const Access& access) {
  std::unique_ptr<View>& slot = buffers_[access.buffer].views[static_cast<size_t>(access.domain)];
  if (!slot) {
    slot = std::make_unique<View>();
    slot->cols = plan_.buffers()[access.buffer].cols;
    slot->last_access.assign(plan_.num_workers(), 0);
    reset(*slot);
  }
  return *slot;
}

void DataFlow::visit(uint32_t worker_idx, uint32_t task_idx, const Clock& before) {
  const Actor actor{worker_idx, task_idx, plan_.tasks(worker_idx)[task_idx], before};
  accesses_.clear();
  model_.append(actor.task, accesses_);
  num_accesses_ += accesses_.size();
  for (const Access& access : accesses_) {
    check_bounds(actor, access);
    if (access.mode == AccessMode::read_earlier) read_earlier(actor, access);
    else if (access.mode != AccessMode::write) read(actor, access);
  }
  for (const Access& access : accesses_)
    if (access.mode == AccessMode::write || access.mode == AccessMode::update) write(actor, access);
}

void DataFlow::read(const Actor& actor, const Access& access) {
  View& seen = view(access);
  seen.last_access[actor.worker_idx] = actor.task_idx + 1;
  RowSets& sets = rows(access);
  const RowSet wanted = sets.progression(access.row_first, access.row_stride);
  const Stage source = source_stage(plan_.shape(), actor.task, access.buffer);
  auto slab = std::prev(seen.slabs.upper_bound(access.col_begin));
  for (; slab != seen.slabs.end() && slab->first < access.col_end; ++slab) {
    for (Piece& piece : slab->second.pieces) {
      if (!sets.meets(piece.rows, wanted)) continue;
      const bool written = piece.writer_worker != kNobody;
      if (!written || !(piece.stage == source))
        fail(ErrorCode::plan_invalid, kWhere, task_name(plan_, actor.worker_idx, actor.task_idx), " reads ",
             region(access), ": expected what '", stage_name(source), "' wrote, got ",
             written ? concat("what ", task_name(plan_, piece.writer_worker, piece.writer_task), " wrote")
                     : std::string("nothing written in this epoch"),
             " at col ", slab->first);
      check_arrival(actor, access, piece);
      ++num_ordered_pairs_;
      if (access.mode == AccessMode::update) continue;  // overwrites what it read: no reader is left behind
      // Marks the whole piece as read, though a part of it may not be: asks for more order, never for less.
      if (wanted != RowSets::kAll) mark_read(piece.readers, actor);
    }
    if (wanted == RowSets::kAll && access.mode == AccessMode::read) mark_read(slab->second.readers, actor);
  }
}

void DataFlow::check_arrival(const Actor& actor, const Access& access, const Piece& piece) const {
  const uint32_t signal = plan_.tasks(piece.writer_worker)[piece.writer_task].signal_counter;
  const auto reader = [&] { return task_name(plan_, actor.worker_idx, actor.task_idx); };
  const auto writer = [&] { return task_name(plan_, piece.writer_worker, piece.writer_task); };
  const auto is_tag = [&](uint32_t counter) {
    const CounterInfo& info = plan_.counters()[counter];
    return info.kind == CounterInfo::Kind::tag && info.buffer == access.buffer;
  };
  const std::span<const Wait> waits(actor.task.waits, actor.task.num_waits);
  for (const Wait& wait : waits)
    MIMO_RT_CHECK(!is_tag(wait.counter) || wait.counter == signal, plan_invalid, kWhere, reader(), " waits for '",
                  plan_.counters()[wait.counter].name, "' but reads ", region(access), " of ", writer());
  if (signal == kNoCounter || !is_tag(signal)) {
    MIMO_RT_CHECK(piece.writer_task < actor.before[piece.writer_worker], plan_invalid, kWhere, reader(), " reads ",
                  region(access), " but may start before its writer ", writer(), " has finished");
    return;
  }
  MIMO_RT_CHECK(std::ranges::any_of(waits, [&](const Wait& wait) { return wait.counter == signal; }), plan_invalid,
                kWhere, reader(), " reads ", region(access), ", tagged words of ", writer(), ": expected a wait for '",
                plan_.counters()[signal].name, "' itself");
}

void DataFlow::read_earlier(const Actor& actor, const Access& access) {
  View& seen = view(access);
  seen.last_access[actor.worker_idx] = actor.task_idx + 1;
  const auto begin = split(seen, access.col_begin), end = split(seen, access.col_end);
  for (auto slab = begin; slab != end; ++slab) {
    for (const Piece& piece : slab->second.pieces)
      if (piece.writer_worker != kNobody)
        fail(ErrorCode::plan_invalid, kWhere, task_name(plan_, actor.worker_idx, actor.task_idx), " reads ",
             region(access), ": expected what an earlier epoch left there, but ",
             task_name(plan_, piece.writer_worker, piece.writer_task), " may have overwritten it");
    mark_read(slab->second.readers, actor);  // whoever writes it must come later
  }
}

void DataFlow::mark_read(Clock& readers, const Actor& actor) const {
  if (readers.empty()) readers.assign(plan_.num_workers(), 0);
  readers[actor.worker_idx] = actor.task_idx + 1;
}

void DataFlow::check_writer(const Actor& actor, const Access& access, const Piece& piece) {
  if (piece.writer_worker == kNobody) return;
  const auto who = [&] { return task_name(plan_, actor.worker_idx, actor.task_idx); };
  const auto writer = [&] { return task_name(plan_, piece.writer_worker, piece.writer_task); };
  MIMO_RT_CHECK(!(piece.stage == stage_of(actor.task)), plan_invalid, kWhere, who(), " writes ", region(access),
                " which ", writer(), " of the same op writes too");
  MIMO_RT_CHECK(piece.writer_task < actor.before[piece.writer_worker], plan_invalid, kWhere, who(), " writes ",
                region(access), " but may start before the earlier writer ", writer(), " has finished");
  ++num_ordered_pairs_;
}

void DataFlow::check_readers(const Actor& actor, const Access& access, const Clock& readers) {
  for (uint32_t w = 0; w < readers.size(); ++w) {
    if (!readers[w] || w == actor.worker_idx) continue;  // its own worker's tasks are in order
    MIMO_RT_CHECK(readers[w] <= actor.before[w], plan_invalid, kWhere,
                  task_name(plan_, actor.worker_idx, actor.task_idx), " overwrites ", region(access),
                  " while its reader ", task_name(plan_, w, readers[w] - 1), " may still be running");
    ++num_ordered_pairs_;
  }
}

void DataFlow::push_down_readers(Slab& slab) {
  if (slab.readers.empty()) return;
  for (Piece& piece : slab.pieces) {
    piece.readers.resize(slab.readers.size(), 0);
    join(piece.readers, slab.readers);
  }
  slab.readers.clear();
}

void DataFlow::claim_from_other_views(const Actor& actor, const Access& access) {
  for (size_t domain = 0; domain < kNumRowDomains; ++domain) {
    View* other = buffers_[access.buffer].views[domain].get();
    if (!other || domain == static_cast<size_t>(access.domain)) continue;
    // Rows of different domains may be the same bytes: whatever happened in the other view must be over.
    for (uint32_t w = 0; w < plan_.num_workers(); ++w)
      MIMO_RT_CHECK(other->last_access[w] <= actor.before[w] || w == actor.worker_idx, plan_invalid, kWhere,
                    task_name(plan_, actor.worker_idx, actor.task_idx), " writes ", region(access), " while ",
                    task_name(plan_, w, other->last_access[w] - 1), " may still use the buffer");
    if (other->slabs.size() > 1 || other->slabs.begin()->second.pieces.size() > 1 ||
        other->slabs.begin()->second.pieces[0].writer_worker != kNobody)
      reset(*other);
  }
}

std::map<uint32_t, DataFlow::Slab>::iterator DataFlow::split(View& view, uint32_t col) {
  auto found = std::prev(view.slabs.upper_bound(col));
  if (found->first == col || col >= found->second.col_end) return found->first == col ? found : view.slabs.end();
  Slab right = found->second;
  found->second.col_end = col;
  return view.slabs.emplace(col, std::move(right)).first;
}

void DataFlow::write(const Actor& actor, const Access& access) {
  claim_from_other_views(actor, access);
  View& seen = view(access);
  seen.last_access[actor.worker_idx] = actor.task_idx + 1;
  RowSets& sets = rows(access);
  const RowSet wanted = sets.progression(access.row_first, access.row_stride);
  if (wanted == RowSets::kNone) return;
  const auto begin = split(seen, access.col_begin), end = split(seen, access.col_end);
  const Piece fresh{wanted, actor.worker_idx, actor.task_idx, stage_of(actor.task), {}};
  for (auto slab = begin; slab != end; ++slab) {
    std::vector<Piece>& pieces = slab->second.pieces;
    if (wanted != RowSets::kAll) push_down_readers(slab->second);  // the new piece has none of them
    check_readers(actor, access, slab->second.readers);
    slab->second.readers.clear();
    for (Piece& piece : pieces) {
      if (!sets.meets(piece.rows, wanted)) continue;
      check_writer(actor, access, piece);
      check_readers(actor, access, piece.readers);
      piece.rows = sets.minus(piece.rows, wanted);
    }
    std::erase_if(pieces, [](const Piece& piece) { return piece.rows == RowSets::kNone; });
    pieces.push_back(fresh);
  }
  if (wanted != RowSets::kAll) return;
  begin->second.col_end = access.col_end;  // one owner now: one slab
  seen.slabs.erase(std::next(begin), end);
}

void DataFlow::finish() const {
  for (uint16_t buffer = 0; buffer < buffers_.size(); ++buffer) {
    if (!leaves_step(plan_, buffer)) continue;
    const BufferInfo& info = plan_.buffers()[buffer];
    bool complete = false;
    for (const std::unique_ptr<View>& seen : buffers_[buffer].views) {
      if (!seen) continue;
      complete = true;
      for (const auto& [col, slab] : seen->slabs)
        for (const Piece& piece : slab.pieces) complete &= piece.writer_worker != kNobody;
    }
    MIMO_RT_CHECK(complete, plan_invalid, kWhere, '\'', info.name,
                  "' leaves the step, but not all of it is written: expected every row and column");
  }
}

}  // namespace mimo_rt

#include "cpu/plan_states.h"

#include "core/checks.h"
#include "plan/task.h"

#include <exception>

namespace mimo_rt::cpu {
namespace {

bool has_fused_norms(const Plan& plan) {
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w))
      if (task.flags & kFusedNorm) return true;
  return false;
}

}  // namespace

PlanStates::PlanStates(const std::vector<const Plan*>& plans, const ModelConfig& config, const DraftConfig* draft)
    : config_(config), draft_(draft) {
  for (const Plan* plan : plans) {
    whole_.push_back(std::make_unique<PlanState>(*plan, config, draft));
    smaller_.emplace_back();
    for (uint32_t w = 1; w < plan->num_workers(); ++w) smaller_.back().push_back(std::make_unique<Smaller>());
  }
}

PlanStates::~PlanStates() {
  for (const auto& of_plan : smaller_)
    for (const auto& smaller : of_plan)
      if (smaller->maker.joinable()) owner_.join(smaller->maker);
}

size_t PlanStates::index_of(const Plan& plan) const {
  for (size_t i = 0; i < whole_.size(); ++i)  // copies of a plan share their tasks
    if (whole_[i]->plan.tasks(0).data() == plan.tasks(0).data()) return i;
  fail(ErrorCode::invalid_argument, "Executor.run", "plan: expected one of those given to the executor, got another");
}

/// nullptr where that fails, for whatever reason: it would only have been faster.
std::unique_ptr<PlanState> PlanStates::make_smaller(const PlanState& whole, uint32_t num_workers) const noexcept {
  try {
    PlanOptions options = whole.plan.options();
    options.num_workers = num_workers;
    // Buffers and the workers' scratch are those of the plan as given.
    options.fuse_norm = has_fused_norms(whole.plan) ? PlanOptions::FuseNorm::yes : PlanOptions::FuseNorm::no;
    const Plan plan = Plan::build(config_, options, whole.plan.shape().draft.num_layers ? draft_ : nullptr);
    plan.verify();
    return std::make_unique<PlanState>(plan, config_, draft_, &whole);
  } catch (const std::exception&) {
    return nullptr;
  }
}

PlanState* PlanStates::smaller(const Plan& plan, uint32_t num_workers) {
  const size_t idx = index_of(plan);
  Smaller& smaller = *smaller_[idx][num_workers - 1];
  if (!smaller.was_asked) {
    smaller.was_asked = true;
    try {
      smaller.maker = std::thread([this, &smaller, &whole = *whole_[idx], num_workers] {
        smaller.state = make_smaller(whole, num_workers);
        smaller.is_there.store(smaller.state != nullptr, std::memory_order_release);
        if (!smaller.state) has_failed_.store(true, std::memory_order_relaxed);
      });
    } catch (const std::exception&) {  // no thread to be had
      has_failed_.store(true, std::memory_order_relaxed);
    }
  }
  return smaller.is_there.load(std::memory_order_acquire) ? smaller.state.get() : nullptr;
}

}  // namespace mimo_rt::cpu

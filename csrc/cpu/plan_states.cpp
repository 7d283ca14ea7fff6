#include "cpu/plan_states.h"

#include "core/checks.h"
#include "plan/task.h"

#include <new>

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
    smaller_.emplace_back(plan->num_workers());
    latest_.push_back(whole_.back().get());
  }
}

size_t PlanStates::index_of(const Plan& plan) const {
  for (size_t i = 0; i < whole_.size(); ++i)  // copies of a plan share their tasks
    if (whole_[i]->plan.tasks(0).data() == plan.tasks(0).data()) return i;
  fail(ErrorCode::invalid_argument, "Executor.run", "plan: expected one of those given to the executor, got another");
}

PlanState& PlanStates::whole(const Plan& plan) {
  const size_t idx = index_of(plan);
  return *(latest_[idx] = whole_[idx].get());
}

PlanState* PlanStates::smaller(const Plan& plan, uint32_t num_workers) {
  const size_t idx = index_of(plan);
  std::unique_ptr<PlanState>& state = smaller_[idx][num_workers - 1];
  if (state) return latest_[idx] = state.get();
  PlanOptions options = plan.options();
  options.num_workers = num_workers;
  // Workers' scratch is sized for the plans as given.
  options.fuse_norm = has_fused_norms(plan) ? PlanOptions::FuseNorm::yes : PlanOptions::FuseNorm::no;
  const DraftConfig* draft = plan.shape().draft.num_layers ? draft_ : nullptr;
  try {
    const Plan fewer = Plan::build(config_, options, draft);
    fewer.verify();
    state = std::make_unique<PlanState>(fewer, config_, draft);
  } catch (const std::bad_alloc&) {
    return nullptr;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::out_of_memory) return nullptr;
    throw;
  }
  return latest_[idx] = state.get();
}

}  // namespace mimo_rt::cpu

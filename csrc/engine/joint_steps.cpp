#include "engine/joint_steps.h"

#include "engine/step_batch.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <vector>

namespace mimo_rt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPatience = 8;  // waits for an eighth of a step at most

}  // namespace

struct JointSteps::Caller : StepQueue::Waiter {
  Caller(const StepRequest& wanted, const std::atomic<bool>& cancelled) : request(wanted), is_cancelled(cancelled) {}
  /// nullptr: one that waits for a turn of its own.
  static Caller* from(StepQueue::Waiter* waiter) { return dynamic_cast<Caller*>(waiter); }

  const StepRequest& request;
  const std::atomic<bool>& is_cancelled;
  std::exception_ptr error;
};

bool JointSteps::run(Engine::Impl& engine, const StepRequest& request, const std::atomic<bool>& is_cancelled) {
  Caller caller(request, is_cancelled);
  if (engine.steps.wait(caller)) {
    const std::lock_guard turn(engine.steps, std::adopt_lock);
    await_others(engine, caller);
    if (is_cancelled) return false;
    run_with_others(engine, caller);
  }
  if (caller.error) std::rethrow_exception(caller.error);
  return true;
}

/// A session that decodes alone waits for nobody. One that took turns with another waits for it, or they never met.
void JointSteps::await_others(Engine::Impl& engine, const Caller& caller) const {
  const auto num_others = last_.size() - static_cast<size_t>(std::ranges::count(last_, caller.request.sequence));
  if (num_others) engine.steps.await_waiting(num_others, last_duration_ / kPatience);
}

/// The others: those that wait longest, as many as fit. Who is cancelled waits on and finds out itself.
void JointSteps::run_with_others(Engine::Impl& engine, Caller& caller) {
  size_t num_left = std::min(engine.max_step_tokens(), engine.max_logit_rows) - 1;
  const std::vector<StepQueue::Waiter*> others = engine.steps.take([&](StepQueue::Waiter& waiter) {
    const Caller* other = Caller::from(&waiter);
    if (!other || !num_left || other->is_cancelled) return false;
    --num_left;
    return true;
  });
  const Clock::time_point begin = Clock::now();
  last_.clear();
  try {
    std::vector<StepRequest> requests = {caller.request};
    for (StepQueue::Waiter* other : others) requests.push_back(Caller::from(other)->request);
    for (const StepRequest& request : requests) last_.push_back(request.sequence);
    run_step(engine, requests);
  } catch (...) {
    caller.error = std::current_exception();
  }
  last_duration_ = Clock::now() - begin;
  for (StepQueue::Waiter* other : others) Caller::from(other)->error = caller.error;
  engine.steps.serve(others);
}

}  // namespace mimo_rt

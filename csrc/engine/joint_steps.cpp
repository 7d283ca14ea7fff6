#include "engine/joint_steps.h"

#include "engine/step_batch.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <numeric>

namespace mimo_rt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPatience = 8;  // waits for an eighth of a step at most

uint32_t max_rows(const Engine::Impl& engine) { return std::min(engine.max_step_tokens(), engine.max_logit_rows); }

/// Leaves of every request the drafts that pay. Returns the rows of all.
uint32_t choose_rows(std::span<JointRequest* const> requests, uint32_t max_rows, const StepTimes& times) {
  const auto num_sessions = static_cast<uint32_t>(requests.size());
  std::vector<const DraftOffer*> offers;
  for (const JointRequest* request : requests) offers.push_back(&request->offer);
  const std::vector<uint32_t> widths = choose_joint_widths(offers, max_rows, times);
  const uint32_t num_rows = std::accumulate(widths.begin(), widths.end(), num_sessions);
  for (uint32_t i = 0; i < num_sessions; ++i) {
    StepRequest& step = requests[i]->step;
    step.tokens = step.tokens.first(1 + widths[i]);
    step.logit_rows = step.logit_rows.first(1 + widths[i]);
    requests[i]->spent = times.at(num_rows) / times.at(num_sessions);
  }
  return num_rows;
}

}  // namespace

struct JointSteps::Caller : StepQueue::Waiter {
  Caller(JointRequest& wanted, const std::atomic<bool>& cancelled) : request(wanted), is_cancelled(cancelled) {}
  /// nullptr: one that waits for a turn of its own.
  static Caller* from(StepQueue::Waiter* waiter) { return dynamic_cast<Caller*>(waiter); }

  JointRequest& request;
  const std::atomic<bool>& is_cancelled;
  std::exception_ptr error;
};

bool JointSteps::run(Engine::Impl& engine, JointRequest& request, const std::atomic<bool>& is_cancelled) {
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
  const auto num_others = last_.size() - static_cast<size_t>(std::ranges::count(last_, caller.request.step.sequence));
  if (num_others) engine.steps.await_waiting(num_others, last_duration_ / kPatience);
}

/// The others: those that wait longest, as many as fit. Who is cancelled waits on and finds out itself.
void JointSteps::run_with_others(Engine::Impl& engine, Caller& caller) {
  uint32_t num_left = max_rows(engine) - 1;
  const std::vector<StepQueue::Waiter*> others = engine.steps.take([&](StepQueue::Waiter& waiter) {
    const Caller* other = Caller::from(&waiter);
    if (!other || !num_left || other->is_cancelled) return false;
    --num_left;
    return true;
  });
  const Clock::time_point begin = Clock::now();
  last_.clear();
  try {
    std::vector<JointRequest*> requests = {&caller.request};
    for (StepQueue::Waiter* other : others) requests.push_back(&Caller::from(other)->request);
    run_all(engine, requests);
  } catch (...) {
    caller.error = std::current_exception();
  }
  last_duration_ = Clock::now() - begin;
  for (StepQueue::Waiter* other : others) Caller::from(other)->error = caller.error;
  engine.steps.serve(others);
}

/// The longest wait for a draft model's context comes first: that is the sequence for which a step makes it.
void JointSteps::run_all(Engine::Impl& engine, std::span<JointRequest*> requests) {
  const auto pending = [](const JointRequest* request) { return request->step.sequence->num_pending_context(); };
  if (engine.draft) std::iter_swap(requests.begin(), std::ranges::max_element(requests, {}, pending));
  const uint32_t num_rows = choose_rows(requests, max_rows(engine), times_);
  std::vector<StepRequest> steps;
  for (const JointRequest* request : requests) {
    steps.push_back(request->step);
    last_.push_back(request->step.sequence);
  }
  const Clock::time_point begin = Clock::now();
  run_step(engine, steps);
  const double ns = std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
  const std::lock_guard lock(times_mutex_);
  times_.add(num_rows, ns);
}

double JointSteps::step_ns(uint32_t num_rows) const {
  const std::lock_guard lock(times_mutex_);
  return times_.is_known() ? times_.at(num_rows) : 0.0;
}

}  // namespace mimo_rt

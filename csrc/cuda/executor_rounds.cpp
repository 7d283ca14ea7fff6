// Rounds on a GPU: launches of many rounds each, whose tokens are read while they run.
//
// The device carries a copy of the state from round to round and reports each of them; the host
// replays the reports, and begins the next launch from its own state. So a launch must not emit more
// than the ring of tokens can take, which bounds its rounds and makes back pressure the host's
// business alone.
#include <algorithm>
#include <exception>

#include "core/checks.h"
#include "cuda/executor.h"
#include "plan/buffers.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "Executor.run_rounds";
constexpr uint64_t kPollNs = 20'000;
/// A launch that is told to stop ends after a round; one that hangs, by its deadlines.
constexpr uint64_t kStopTimeoutNs = 10'000'000'000;

bool wants_logprobs(const RoundState& rounds) {
  return rounds.request.params->want_logprob || rounds.request.params->num_logprobs != 0;
}

/// Calls the caller's function, but never again after it has thrown: then the rounds shall stop.
class Poll {
 public:
  Poll(RoundState& rounds, const std::function<void()>& function)
      : rounds_(rounds), function_(function) {}

  void operator()() {
    if (error_ || !function_) return;
    try {
      function_();
    } catch (...) {
      error_ = std::current_exception();
      rounds_.stop_requested = true;
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  RoundState& rounds_;
  const std::function<void()>& function_;
  std::exception_ptr error_;
};

}  // namespace

void CudaExecutor::run_rounds(const Plan& plan, KvCache& cache, RoundState& rounds,
                              const std::function<void()>& function) {
  refuse_after_failure();
  const size_t plan_idx = index_of(plan);
  if (!checker_.check_rounds(model_->config, plan, cache, rounds)) return;
  StepBlock& block = device_cache(cache).block(plan_idx);
  last_cache_ = cache.store();
  if (wants_logprobs(rounds)) reserve_results(block);
  Poll poll(rounds, function);
  while (rounds.end == RoundEnd::running) {
    inputs_.reserve(block, rounds);
    try {
      launch_rounds(block, rounds, [&] { poll(); });
    } catch (const std::exception& error) {
      // Counters stand where the launch has left them, and the host does not know where: no way on.
      const auto* known = dynamic_cast<const Error*>(&error);
      note_failure(known ? *known : Error(ErrorCode::internal, error.what()));
      poll.rethrow();
      throw;
    }
  }
  poll.rethrow();
}

void CudaExecutor::launch_rounds(StepBlock& block, RoundState& rounds,
                                 const std::function<void()>& poll) {
  const StepLayout& layout = block.plan.layout();
  const uint32_t block_size = block.plan.plan().options().max_tokens;
  StepDevice& device = *model_->device;
  PersistentParams params = launch_params(block);
  // Logprobs are made of the logits, which the next round overwrites.
  const uint32_t most_rounds = wants_logprobs(rounds) ? 1 : kMaxLaunchRounds;
  params.num_epochs = std::min({most_rounds, rounds.ring.free() / block_size,
                                rounds.max_rounds - rounds.num_rounds});
  mail_.tell(rounds, block_size);
  inputs_.send(block, rounds, mail_.mailbox(), mail_.next_number());
  device.launch(params, num_workers());
  trace_.receive(block.plan.plan());
  if (wants_logprobs(rounds))
    device.receive(results_.data() + layout.result_bytes(), block.addresses.step + layout.logits,
                   block.plan.plan().buffers()[kLogits].bytes);
  uint32_t num_done = 0;
  try {
    num_done = read_until_over(block, rounds, poll);
  } catch (...) {
    end_launch();
    throw;
  }
  num_done += read_rounds(block, rounds);
  poll();
  block.epoch += num_done;
  fail_after_hang(block);
  MIMO_RT_CHECK(num_done == params.num_epochs || rounds.end != RoundEnd::running, internal, kWhere,
                "expected ", params.num_epochs, " rounds of a launch, got ", num_done);
}

/// Replays rounds while the launch runs. @return how many
uint32_t CudaExecutor::read_until_over(const StepBlock& block, RoundState& rounds,
                                       const std::function<void()>& poll) {
  const uint32_t block_size = block.plan.plan().options().max_tokens;
  uint32_t num_done = 0;
  for (uint64_t idle_ns = 0; !model_->device->wait(kPollNs); idle_ns += kPollNs) {
    if (idle_ns >= kStepTimeoutNs) fail_step();
    if (wants_logprobs(rounds)) continue;
    const uint32_t num_new = read_rounds(block, rounds);
    if (num_new) idle_ns = 0;
    num_done += num_new;
    poll();
    mail_.tell(rounds, block_size);
  }
  return num_done;
}

/// Nobody reads its rounds any more: stops the launch, so that it does not outlive what it writes to.
void CudaExecutor::end_launch() noexcept {
  mail_.stop();
  try {
    (void)model_->device->wait(kStopTimeoutNs);
  } catch (const Error&) {  // a lost device runs nothing
  }
}

/// Replays the rounds that have ended. @return how many
uint32_t CudaExecutor::read_rounds(const StepBlock& block, RoundState& rounds) {
  const StepLayout& layout = block.plan.layout();
  const float* logits = nullptr;
  if (wants_logprobs(rounds))
    logits = reinterpret_cast<const float*>(results_.data() + layout.result_bytes());
  uint32_t num_read = 0;
  for (; const RoundRecord* record = mail_.read(); ++num_read)
    apply_record(rounds, *record, logits, block.plan.plan().buffers()[kLogits].cols);
  return num_read;
}

}  // namespace mimo_rt::cuda

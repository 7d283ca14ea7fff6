// Rounds on a GPU: launches of many rounds each, whose tokens are read while they run.
//
// The device carries a copy of the state from round to round and reports each of them; the host
// replays the reports, and begins the next launch from its own state. So a launch may not emit more
// than the ring of tokens can take: that bounds the rounds that it is granted, and makes back pressure
// the host's business alone. A caller that comes back after every round finds its launch waiting on the
// device: see resident_launch.h.
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

/// Rounds that may run before the caller has read another token.
uint32_t num_free_rounds(const StepBlock& block, const RoundState& rounds) {
  const uint32_t block_size = block.plan.plan().options().max_tokens;
  return std::min(rounds.ring.free() / block_size, rounds.max_rounds - rounds.num_rounds);
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
  DeviceCache& on_device = device_cache(cache);
  StepBlock& block = on_device.block(plan_idx);
  const KvSequence sequence = on_device.sequence(rounds.input.seq_idx[0]);
  bool is_launched = resume_launch(block, rounds);
  last_cache_ = cache.store();
  if (wants_logprobs(rounds)) reserve_results(block);
  Poll poll(rounds, function);
  for (; rounds.end == RoundEnd::running; is_launched = false) {
    if (!is_launched) inputs_.reserve(block, rounds);
    try {
      if (!is_launched) launch_rounds(block, rounds, sequence);
      follow_launch(block, rounds, [&] { poll(); });
    } catch (const std::exception& error) {
      end_launch();
      // Counters stand where the launch has left them, and the host does not know where: no way on.
      const auto* known = dynamic_cast<const Error*>(&error);
      note_failure(known ? *known : Error(ErrorCode::internal, error.what()));
      poll.rethrow();
      throw;
    }
  }
  poll.rethrow();
}

/// Whether a launch may outlive the rounds that it is begun with. Not with logprobs, which are made of
/// logits that the next round overwrites, nor with a trace, which comes when the launch is over.
bool CudaExecutor::stays(const RoundState& rounds) const {
  return rounds.comes_back && !wants_logprobs(rounds) && !trace_.is_open();
}

/// Grants as many of the `num_left` rounds of the launch as `rounds` has room for. @return how many
uint32_t CudaExecutor::grant_rounds(const StepBlock& block, const RoundState& rounds, uint32_t num_left) {
  const uint32_t num_granted = std::min(num_left, num_free_rounds(block, rounds));
  mail_.grant(num_granted == num_left ? num_left + 1 : num_granted);  // after its last one it does not wait
  mail_.tell(rounds);
  return num_granted;
}

void CudaExecutor::launch_rounds(StepBlock& block, RoundState& rounds, const KvSequence& sequence) {
  const StepLayout& layout = block.plan.layout();
  StepDevice& device = *model_->device;
  PersistentParams params = launch_params(block);
  params.num_epochs = wants_logprobs(rounds) ? 1 : kMaxLaunchRounds;
  if (!stays(rounds)) params.num_epochs = std::min(params.num_epochs, num_free_rounds(block, rounds));
  resident_.begin(block, rounds, params.num_epochs, grant_rounds(block, rounds, params.num_epochs));
  inputs_.send(block, rounds, sequence, mail_.mailbox(), mail_.next_number());
  device.launch(params, num_workers());
  trace_.receive(block.plan.plan());
  if (wants_logprobs(rounds))
    device.receive(results_.data() + layout.result_bytes(), block.addresses.step + layout.logits,
                   block.plan.plan().buffers()[kLogits].bytes);
}

/// Replays rounds of the launch until it is over, or until it waits for more of these rounds.
void CudaExecutor::follow_launch(StepBlock& block, RoundState& rounds, const std::function<void()>& poll) {
  const Plan& plan = block.plan.plan();
  const bool reads_late = wants_logprobs(rounds);  // when what they are made of has come
  uint64_t idle_ns = 0;
  bool is_over = false;
  while (!is_over) {
    is_over = model_->device->wait(kPollNs, [&] { return !reads_late && mail_.has_next(); });
    const bool has_news = (is_over || !reads_late) && read_rounds(block, rounds);
    idle_ns = has_news ? 0 : idle_ns + kPollNs;
    if (!is_over && idle_ns >= kStepTimeoutNs) fail_step();
    poll();
    const bool may_stay = !is_over && stays(rounds) && resident_.num_left() != 0;
    if (may_stay && rounds.end == RoundEnd::max_rounds && !rounds.should_stop())
      return resident_.wait_for(block, rounds);
    mail_.tell(rounds);
  }
  fail_after_hang(plan);
  MIMO_RT_CHECK(resident_.num_due() == 0 || rounds.end != RoundEnd::running, internal, kWhere, "expected ",
                resident_.num_due(), " more rounds of a launch, got none");
}

/// Goes on with the launch that waits for these rounds. Any other leaves. @return whether there was one
bool CudaExecutor::resume_launch(const StepBlock& block, const RoundState& rounds) {
  if (!resident_.waits_for(block, rounds)) {
    free_device();
    return false;
  }
  resident_.stop_waiting();
  grant_rounds(block, rounds, resident_.num_left());
  return true;
}

/// A launch that waits on the device leaves.
void CudaExecutor::free_device() {
  if (!resident_.is_waiting()) return;
  resident_.stop_waiting();
  mail_.stop();
  try {
    if (!model_->device->wait(kStepTimeoutNs)) fail_step();
    fail_after_hang(resident_.plan());
  } catch (const Error& error) {
    note_failure(error);
    throw;
  }
}

/// Nobody reads its rounds any more: stops the launch, so that it does not outlive what it writes to.
void CudaExecutor::end_launch() noexcept {
  mail_.stop();
  try {
    (void)model_->device->wait(kStopTimeoutNs);
  } catch (const Error&) {  // a lost device runs nothing
  }
}

/// Replays the rounds that have ended. @return whether there were any
bool CudaExecutor::read_rounds(StepBlock& block, RoundState& rounds) {
  const StepLayout& layout = block.plan.layout();
  const float* logits = nullptr;
  if (wants_logprobs(rounds))
    logits = reinterpret_cast<const float*>(results_.data() + layout.result_bytes());
  const uint32_t first_number = mail_.next_number();
  while (const RoundRecord* record = mail_.read()) {
    apply_record(rounds, *record, logits, block.plan.plan().buffers()[kLogits].cols);
    resident_.count_round();
    ++block.epoch;
  }
  return mail_.next_number() != first_number;
}

}  // namespace mimo_rt::cuda

// The edges between blocks (device/sync), their own source under the emulated GPU: a relay of three
// blocks over many epochs is right in every schedule; each planted fault is found; a signal that
// never comes ends the kernel with a report.
#define MIMO_RT_HOST_EMULATION
#include <numeric>

#include "check.h"
#include "cuda/device/sync/counter.cuh"
#include "cuda/device/sync/mbarrier.cuh"
#include "cuda/device/sync/tagged.cuh"
#include "emulation/schedule.h"

using namespace mimo_rt;

namespace {

enum class Fault {
  none,
  no_barrier_before_signal,  // thread 0 signals for stores that the others have not made
  no_barrier_after_wait,     // the others read before thread 0 has waited
  previous_epoch,            // waits for the signals of the epoch before
  one_signal_too_few,        // waits for one of two producers
  no_overwrite_wait,         // a producer does not wait for the reader of its last value
  no_proxy_fence,            // rows go to a bulk copy without a fence on either side
  not_a_release,             // an ordinary addition: only ThreadSanitizer sees it
  torn_word,                 // tag and payload in two stores, the tag first
  missing_signal,
  missing_word,
  newer_tag,
};

constexpr uint32_t kThreads = 64, kProducers = 2, kBlocks = kProducers + 1, kEpochs = 6;
constexpr uint32_t kValues = kProducers * kThreads;  // one per thread of a producer
constexpr uint32_t kReady = 0, kRead = 1;            // counters
constexpr uint32_t kFaultyEpoch = 3;                 // relative to the first

/// Blocks 0 and 1 write values; block 2 reads them, directly and by bulk copy, and answers with
/// tagged words, which block 0 reads.
struct Params {
  Fault fault;
  uint32_t first_epoch;
  cuda::CounterCell* counters;
  cuda::Watchdog watchdog[kBlocks];
  uint32_t* values;           // [kValues]
  cuda::TaggedWord* answers;  // two rows of kThreads
  uint64_t* sums;             // [kEpochs, kThreads] as block 2 sees them
  uint32_t* received;         // [kEpochs, kThreads] payloads that block 0 sees
};

struct Shared {
  alignas(128) uint32_t copied[kValues];
  uint64_t copy_done;
  uint32_t is_met, num_failed;
};

Shared& shared() { return *reinterpret_cast<Shared*>(ptx::dynamic_shared_memory()); }

uint32_t value_of(uint32_t epoch, uint32_t i) { return epoch * 1000 + i; }
uint32_t answer_of(uint32_t epoch, uint32_t thread) { return epoch * 77 + thread; }

cuda::WaitSite site_of(const Params& p, uint32_t epoch, cuda::EdgeKind edge, uint32_t edge_idx) {
  return {blockIdx.x, epoch - p.first_epoch, 4, 17, edge, edge_idx};
}

/// One thread looks at the clock until the wait has taken a little more than the longest pause.
__global__ void keep_waiting(uint64_t deadline_ns, uint32_t* num_looks) {
  if (threadIdx.x != 0) return;
  cuda::WaitClock clock;
  for (*num_looks = 1; !clock.has_passed(deadline_ns); ++*num_looks) {
    ++emulation::machine->progress;
    ptx::sleep_ns(20);
  }
}

/// Thread 0 waits, all threads get the answer.
bool wait_in_block(const Params& p, uint32_t counter, uint32_t expected, uint32_t epoch) {
  if (threadIdx.x == 0)
    shared().is_met = wait_for_counter(p.watchdog[blockIdx.x], &p.counters[counter], expected,
                                       site_of(p, epoch, cuda::EdgeKind::counter, counter));
  ptx::named_barrier_sync(0, kThreads);
  const bool is_met = shared().is_met;
  ptx::named_barrier_sync(0, kThreads);
  return is_met;
}

void signal(const Params& p, uint32_t counter, uint32_t epoch) {
  if (threadIdx.x != 0) return;
  const bool is_faulty = epoch - p.first_epoch == kFaultyEpoch;
  if (p.fault == Fault::missing_signal && blockIdx.x == 1 && is_faulty) return;
  if (p.fault == Fault::not_a_release) {
    const emulation::Unchecked unchecked;
    p.counters[counter].value += 1;
    ++emulation::machine->progress;
  } else {
    cuda::signal_counter(&p.counters[counter]);
  }
}

bool receive_answers(const Params& p, uint32_t epoch) {
  const cuda::TaggedWord* row = cuda::tagged_row(p.answers, kThreads, epoch);
  uint32_t payload = 0;
  const bool is_met =
      wait_for_tagged(p.watchdog[blockIdx.x], &row[threadIdx.x], epoch,
                      site_of(p, epoch, cuda::EdgeKind::tag, 5), payload);
  p.received[(epoch - p.first_epoch) * kThreads + threadIdx.x] = payload;
  if (threadIdx.x == 0) shared().num_failed = 0;
  ptx::named_barrier_sync(0, kThreads);
  {
    const emulation::Unchecked unchecked;  // stands for an atomic addition
    shared().num_failed += !is_met;
  }
  ptx::named_barrier_sync(0, kThreads);
  const bool is_met_by_all = shared().num_failed == 0;
  ptx::named_barrier_sync(0, kThreads);
  return is_met_by_all;
}

void produce(const Params& p) {
  for (uint32_t epoch = p.first_epoch; epoch != p.first_epoch + kEpochs; ++epoch) {
    if (p.fault != Fault::no_overwrite_wait && !wait_in_block(p, kRead, epoch, epoch)) return;
    const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
    if (threadIdx.x >= 32) ptx::sync_warp();  // the second warp comes a little later
    p.values[i] = value_of(epoch, i);
    if (p.fault != Fault::no_proxy_fence) ptx::fence_proxy_async();
    if (p.fault != Fault::no_barrier_before_signal) ptx::named_barrier_sync(0, kThreads);
    signal(p, kReady, epoch);
    if (blockIdx.x == 0 && !receive_answers(p, epoch)) return;
  }
}

void copy_values(const Params& p, uint32_t parity) {
  if (threadIdx.x == 0) {
    if (p.fault != Fault::no_proxy_fence) ptx::fence_proxy_async();
    ptx::mbarrier_arrive_expect_tx(&shared().copy_done, sizeof shared().copied);
    ptx::bulk_copy(shared().copied, p.values, sizeof shared().copied, &shared().copy_done, 0);
  }
  cuda::wait_for_phase(&shared().copy_done, parity);
}

void answer(const Params& p, uint32_t epoch) {
  const uint32_t thread = threadIdx.x, payload = answer_of(epoch, thread);
  const bool is_chosen = epoch - p.first_epoch == kFaultyEpoch && thread == 40;
  cuda::TaggedWord* word = cuda::tagged_row(p.answers, kThreads, epoch) + thread;
  if (p.fault == Fault::missing_word && is_chosen) return;
  if (p.fault == Fault::torn_word) {
    ptx::store_relaxed_gpu(word, uint64_t{epoch} << 32 | static_cast<uint32_t>(*word));
    ptx::sync_warp();
  }
  cuda::publish_tagged(word, payload, p.fault == Fault::newer_tag && is_chosen ? epoch + 2 : epoch);
}

void consume(const Params& p) {
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&shared().copy_done, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::named_barrier_sync(0, kThreads);
  for (uint32_t epoch = p.first_epoch; epoch != p.first_epoch + kEpochs; ++epoch) {
    const uint32_t begin = epoch * kProducers;  // of the counter in this epoch, modulo 2^32
    uint32_t expected = begin + kProducers;
    if (p.fault == Fault::previous_epoch) expected = begin;
    if (p.fault == Fault::one_signal_too_few) expected = begin + 1;
    if (p.fault == Fault::no_barrier_after_wait) {
      if (threadIdx.x == 0)
        (void)wait_for_counter(p.watchdog[2], &p.counters[kReady], expected,
                               site_of(p, epoch, cuda::EdgeKind::counter, kReady));
    } else if (!wait_in_block(p, kReady, expected, epoch)) {
      return;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < kValues; ++i) sum += p.values[i] * uint64_t{i + 1};
    copy_values(p, (epoch - p.first_epoch) % 2);
    for (uint32_t i = 0; i < kValues; ++i) sum += shared().copied[i];
    p.sums[(epoch - p.first_epoch) * kThreads + threadIdx.x] = sum;
    ptx::fence_proxy_async();  // the next copy overwrites what was read
    ptx::named_barrier_sync(0, kThreads);
    answer(p, epoch);
    signal(p, kRead, epoch);
  }
}

__global__ void relay(Params p) {
  if (blockIdx.x < kProducers)
    produce(p);
  else
    consume(p);
}

struct Outcome {
  std::string error;
  bool is_right = true;
  uint32_t stop = 0;
  cuda::HangReport report{};
  bool found() const { return !error.empty() || !is_right || stop != cuda::kRunning; }
};

Outcome run(Fault fault, uint64_t seed, uint32_t first_epoch = 1) {
  cuda::CounterCell counters[2] = {{first_epoch * kProducers}, {first_epoch}};
  alignas(16) static uint32_t values[kValues];
  std::fill(values, values + kValues, 0u);
  std::vector<cuda::TaggedWord> answers(2 * kThreads);
  std::vector<uint64_t> sums(kEpochs * kThreads);
  std::vector<uint32_t> received(kEpochs * kThreads);
  Outcome outcome;
  Params params{fault, first_epoch, counters, {}, values, answers.data(), sums.data(),
                received.data()};
  // A round of the scheduler is 1 us. The deadlines differ, so that it is known who is first.
  const uint32_t first = fault == Fault::missing_word || fault == Fault::newer_tag ? 0 : 2;
  for (uint32_t block = 0; block < kBlocks; ++block)
    params.watchdog[block] = {&outcome.stop, &outcome.report, block == first ? 300'000u : 900'000u};
  emulation::LaunchOptions options;
  options.num_blocks = kBlocks;
  options.num_threads = kThreads;
  options.shared_bytes = sizeof(Shared);
  options.seed = seed;
  options.handed_over = {{reinterpret_cast<uint8_t*>(values), sizeof values}};
  outcome.error = emulation::launch(options, relay, params).error;
  for (uint32_t e = 0; e < kEpochs; ++e) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < kValues; ++i)
      sum += value_of(first_epoch + e, i) * uint64_t{i + 1} + value_of(first_epoch + e, i);
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
      outcome.is_right &= sums[e * kThreads + thread] == sum;
      outcome.is_right &= received[e * kThreads + thread] == answer_of(first_epoch + e, thread);
    }
  }
  return outcome;
}

constexpr uint64_t kNumSeeds = 40;

uint32_t times_found(Fault fault) {
  uint32_t count = 0;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) count += run(fault, seed).found();
  return count;
}

void check_clean(uint32_t first_epoch, uint64_t num_seeds) {
  for (uint64_t seed = 0; seed <= num_seeds; ++seed) {
    const Outcome outcome = run(Fault::none, seed, first_epoch);
    if (outcome.found()) check::report(__FILE__, __LINE__, outcome.error);
    CHECK(!outcome.found());
    CHECK_EQ(outcome.report.is_written, 0u);
  }
}

}  // namespace

TEST_CASE("every edge hands over the right values in every schedule") { check_clean(1, kNumSeeds); }

TEST_CASE("counters and tags may wrap around") {
  check_clean(0x80000000u / kProducers - 2, 4);  // the counter of two signals passes 2^31
  check_clean(0x7ffffffdu, 4);                   // it passes 2^32
  check_clean(0xfffffffdu, 4);                   // epochs do
}

TEST_CASE("a missing barrier beside a signal or a wait is found") {
  CHECK(times_found(Fault::no_barrier_before_signal) != 0);
  CHECK(times_found(Fault::no_barrier_after_wait) != 0);
}

TEST_CASE("a wrong epoch or value of a wait is found") {
  CHECK_EQ(times_found(Fault::previous_epoch), kNumSeeds);
  CHECK(times_found(Fault::one_signal_too_few) != 0);
}

TEST_CASE("an overwrite while a reader is pending is found") {
  CHECK(times_found(Fault::no_overwrite_wait) != 0);
}

TEST_CASE("an unfenced hand-over to a bulk copy is found") {
  CHECK_EQ(times_found(Fault::no_proxy_fence), kNumSeeds);
  CHECK(run(Fault::no_proxy_fence, 0).error.find("fence.proxy.async") != std::string::npos);
}

TEST_CASE("a tag that comes before its payload is found") {
  CHECK(times_found(Fault::torn_word) != 0);
}

TEST_CASE("a wait counts no pause for more than 10 ms: under a debugger it is no hang") {
  constexpr uint64_t kDeadlineNs = 3 * cuda::kMaxPauseNs;  // 30'000 rounds of a microsecond
  const auto looks_with_pauses = [&](const std::vector<uint64_t>& pauses_ns) {
    uint32_t num_looks = 0;
    const emulation::LaunchOptions options;
    emulation::Launch launch(options, [&] { keep_waiting(kDeadlineNs, &num_looks); });
    for (const uint64_t pause_ns : pauses_ns) {
      launch.advance(100);
      launch.hold(pause_ns);
    }
    CHECK(launch.advance(~uint64_t{0}));
    CHECK_EQ(launch.result().error, std::string());
    return num_looks;
  };
  constexpr uint64_t kHourNs = 3'600'000'000'000;
  const auto is_about = [](uint32_t looks, uint32_t expected) { return looks + 20 > expected && looks < expected + 20; };
  CHECK(is_about(looks_with_pauses({}), 30'000));
  CHECK(is_about(looks_with_pauses({5'000'000}), 25'000));
  CHECK(is_about(looks_with_pauses({kHourNs}), 20'000));
  CHECK(is_about(looks_with_pauses({kHourNs, 2 * kHourNs}), 10'000));
}

TEST_CASE("a signal that does not come ends all blocks with one report") {
  for (uint64_t seed = 0; seed <= kNumSeeds; ++seed) {
    const uint32_t first_epoch = seed % 2 == 0 ? 1 : 9;
    const Outcome outcome = run(Fault::missing_signal, seed, first_epoch);
    CHECK_EQ(outcome.error, std::string());  // every thread has left by itself
    CHECK_EQ(outcome.stop, cuda::kHung);
    const cuda::HangReport& report = outcome.report;
    CHECK_EQ(report.is_written, 1u);
    CHECK_EQ(report.site.worker_idx, 2u);
    CHECK_EQ(report.site.task_idx, kFaultyEpoch);
    CHECK_EQ(report.site.kind, 4u);
    CHECK_EQ(report.site.layer_idx, 17u);
    CHECK(report.site.edge == cuda::EdgeKind::counter);
    CHECK_EQ(report.site.edge_idx, kReady);
    CHECK_EQ(report.expected, (first_epoch + kFaultyEpoch) * kProducers + kProducers);
    CHECK_EQ(report.seen, report.expected - 1);
  }
}

TEST_CASE("a word that does not come, or that is overwritten, ends all blocks with one report") {
  for (const Fault fault : {Fault::missing_word, Fault::newer_tag})
    for (uint64_t seed = 0; seed <= kNumSeeds / 4; ++seed) {
      const Outcome outcome = run(fault, seed);
      CHECK_EQ(outcome.error, std::string());
      CHECK_EQ(outcome.stop, cuda::kHung);
      CHECK_EQ(outcome.report.is_written, 1u);
      const uint32_t epoch = 1 + kFaultyEpoch;
      CHECK(outcome.report.site.edge == cuda::EdgeKind::tag);
      CHECK_EQ(outcome.report.site.worker_idx, 0u);
      CHECK_EQ(outcome.report.site.task_idx, kFaultyEpoch);
      CHECK_EQ(outcome.report.site.edge_idx, 5u);
      CHECK_EQ(outcome.report.expected, epoch);
      CHECK_EQ(outcome.report.seen, fault == Fault::newer_tag ? epoch + 2 : epoch - 2);
    }
}

TEST_CASE("an addition without release looks right: only ThreadSanitizer finds it") {
  CHECK_EQ(times_found(Fault::not_a_release), 0u);
}

CHECK_MAIN()

// The emulated GPU: a small kernel with a ring, a block barrier and a hand-over between blocks runs
// correctly in every order; each planted fault is found.
#define MIMO_RT_HOST_EMULATION
#include <cmath>
#include <numeric>

#include "check.h"
#include "cuda/device/sync/ring.cuh"
#include "emulation/schedule.h"

using namespace mimo_rt;

namespace {

enum class Fault {
  none,
  no_init_barrier,
  no_barrier,
  wrong_phase,
  ring_overrun,
  read_before_arrival,
  early_release,
  no_release,
  two_releases,
  two_arrivals,
  wrong_bytes,
  no_fence,
  fence_too_early,
  no_acquire,
  diverged,
  missing_thread,
  stale_handover,
};

constexpr uint32_t kConsumers = 2, kThreads = 32 * (kConsumers + 1), kStageFloats = 64;
constexpr uint32_t kTickets = 12, kHandedOver = 128;

/// One block: sums[t] of every ticket t through a ring. Then it hands over a table in global
/// memory, which the other block fetches by bulk copy.
struct Params {
  Fault fault;
  uint32_t fetching_block;
  const float* input;  // [kTickets, kStageFloats]
  float* sums;         // [kTickets]
  float* table;        // [kHandedOver] written by one block with ordinary stores
  float* fetched;      // [kHandedOver] written by the other
  uint32_t* ready;
};

struct Shared {
  cuda::Ring<2, 256> ring;
  float partial[kConsumers][32];
  alignas(128) float copied[kHandedOver];
  uint64_t copy_done;
};

Shared& shared() { return *reinterpret_cast<Shared*>(ptx::dynamic_shared_memory()); }

void produce(const Params& p) {
  if (threadIdx.x % 32 != 0) return;
  for (uint32_t ticket = 0; ticket < kTickets; ++ticket) {
    const auto* source = reinterpret_cast<const uint8_t*>(p.input + ticket * kStageFloats);
    auto& ring = shared().ring;
    if (p.fault == Fault::ring_overrun) {
      ptx::mbarrier_arrive_expect_tx(&ring.full[ticket % 2], 256);
      ptx::bulk_copy(ring.stages[ticket % 2], source, 256, &ring.full[ticket % 2], 0);
    } else if (p.fault == Fault::wrong_bytes) {
      cuda::wait_for_phase(&ring.empty[ticket % 2], (ticket / 2 & 1) ^ 1);
      ptx::mbarrier_arrive_expect_tx(&ring.full[ticket % 2], 272);
      ptx::bulk_copy(ring.stages[ticket % 2], source, 256, &ring.full[ticket % 2], 0);
    } else {
      ring.fill(ticket, source, 256, 0);
      if (p.fault == Fault::two_arrivals) ptx::mbarrier_arrive(&ring.full[ticket % 2]);
    }
  }
}

const uint8_t* wait_stage(const Params& p, uint32_t ticket) {
  auto& ring = shared().ring;
  if (p.fault == Fault::read_before_arrival) return ring.stages[ticket % 2];
  if (p.fault == Fault::wrong_phase) {
    cuda::wait_for_phase(&ring.full[ticket % 2], (ticket / 2 & 1) ^ 1);
    return ring.stages[ticket % 2];
  }
  return ring.wait(ticket);
}

/// Consumer w owns the tickets with ticket % 2 == w; both add up what they have found.
void consume(const Params& p) {
  const uint32_t consumer = threadIdx.x / 32 - 1, lane = threadIdx.x % 32;
  auto& ring = shared().ring;
  for (uint32_t first = 0; first < kTickets; first += kConsumers) {
    const uint32_t ticket = first + consumer;
    const auto* stage = reinterpret_cast<const float*>(wait_stage(p, ticket));
    if (p.fault == Fault::early_release) ring.release(ticket, lane);
    if (p.fault != Fault::diverged || lane != 7)
      ptx::sync_warp();
    else
      (void)ptx::shuffle(1.0f, 0);
    shared().partial[consumer][lane] = stage[lane] + stage[32 + lane];
    if (p.fault == Fault::two_releases) ring.release(ticket, lane);
    if (p.fault != Fault::early_release && p.fault != Fault::no_release) ring.release(ticket, lane);
    if (p.fault != Fault::no_barrier && (p.fault != Fault::missing_thread || threadIdx.x != 95))
      ptx::named_barrier_sync(1, 32 * kConsumers);
    if (lane < kConsumers && consumer == 0) {
      float sum = 0;
      for (uint32_t i = 0; i < 32; ++i) sum += shared().partial[lane][i];
      p.sums[first + lane] = sum;
    }
    if (p.fault != Fault::no_barrier) ptx::named_barrier_sync(2, 32 * kConsumers);
  }
}

void hand_over(const Params& p) {
  if (p.fault == Fault::fence_too_early) ptx::fence_proxy_async();
  if (p.fault == Fault::stale_handover && threadIdx.x == 0) ptx::add_release_gpu(p.ready, 1);
  for (uint32_t i = threadIdx.x; i < kHandedOver; i += kThreads) p.table[i] = float(i) + 0.5f;
  if (p.fault != Fault::no_fence && p.fault != Fault::fence_too_early) ptx::fence_proxy_async();
  ptx::named_barrier_sync(0, kThreads);
  if (threadIdx.x == 0) ptx::add_release_gpu(p.ready, 1);
}

void fetch(const Params& p) {
  Shared& s = shared();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&s.copy_done, 1);
    ptx::fence_mbarrier_init();
    while (p.fault != Fault::no_acquire && ptx::load_acquire_gpu(p.ready) == 0) ptx::sleep_ns(20);
    ptx::mbarrier_arrive_expect_tx(&s.copy_done, sizeof s.copied);
    ptx::bulk_copy(s.copied, p.table, sizeof s.copied, &s.copy_done, 0);
  }
  ptx::named_barrier_sync(0, kThreads);
  cuda::wait_for_phase(&s.copy_done, 0);
  for (uint32_t i = threadIdx.x; i < kHandedOver; i += kThreads) p.fetched[i] = s.copied[i];
}

__global__ void pipeline(Params p) {
  if (blockIdx.x == p.fetching_block) return fetch(p);
  if (threadIdx.x == 0) shared().ring.init();
  if (p.fault != Fault::no_init_barrier) ptx::named_barrier_sync(0, kThreads);
  if (threadIdx.x < 32)
    produce(p);
  else
    consume(p);
  hand_over(p);
}

struct Outcome {
  std::string error;
  bool is_right = false;
  bool found() const { return !error.empty() || !is_right; }
};

Outcome run(Fault fault, uint64_t seed, uint32_t max_resident = 2, uint32_t fetching_block = 1) {
  std::vector<float> input(kTickets * kStageFloats), sums(kTickets, NAN);
  alignas(16) static float table[kHandedOver];
  std::vector<float> fetched(kHandedOver, NAN);
  std::iota(input.begin(), input.end(), 1.0f);
  std::fill(table, table + kHandedOver, -1.0f);
  uint32_t ready = 0;
  emulation::LaunchOptions options;
  options.num_blocks = 2;
  options.num_threads = kThreads;
  options.shared_bytes = sizeof(Shared);
  options.seed = seed;
  options.max_resident = max_resident;
  options.handed_over = {{reinterpret_cast<uint8_t*>(table), sizeof table}};
  options.name_shared = [](size_t offset) {
    const size_t full = offsetof(Shared, ring.full), empty = offsetof(Shared, ring.empty);
    if (offset >= full && offset < full + 16)
      return "full[" + std::to_string((offset - full) / 8) + "]";
    if (offset >= empty && offset < empty + 16)
      return "empty[" + std::to_string((offset - empty) / 8) + "]";
    return std::string("-");
  };
  const auto result = emulation::launch(
      options, pipeline,
      {fault, fetching_block, input.data(), sums.data(), table, fetched.data(), &ready});
  Outcome outcome{result.error, true};
  for (uint32_t t = 0; t < kTickets; ++t) {
    const float* stage = input.data() + t * kStageFloats;
    outcome.is_right &= sums[t] == std::accumulate(stage, stage + kStageFloats, 0.0f);
  }
  for (uint32_t i = 0; i < kHandedOver; ++i) outcome.is_right &= fetched[i] == float(i) + 0.5f;
  return outcome;
}

constexpr uint64_t kNumSeeds = 40;

/// In how many of the random schedules a fault is found; the first error text goes to `error`.
uint32_t times_found(Fault fault, std::string& error) {
  uint32_t count = 0;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
    const Outcome outcome = run(fault, seed);
    count += outcome.found();
    if (error.empty()) error = outcome.error;
  }
  return count;
}

/// A letter in host memory, numbered last.
struct Letter {
  uint32_t text, number;
};

/// Thread 0 writes letters 1, 2, …, each after the host has had time to read the one before.
void write_letters(Letter* letter, uint32_t num_letters, bool is_ordinary) {
  for (uint32_t i = 1; i <= num_letters && threadIdx.x == 0; ++i) {
    letter->text = 10 * i;
    if (is_ordinary)
      letter->number = i;
    else
      ptx::store_release_system(&letter->number, i);
    for (uint32_t pause = 0; pause < 4; ++pause) ptx::sleep_ns(20);
  }
}

struct Mail {
  std::vector<uint32_t> numbers;  ///< as the host has seen them while the kernel ran
  uint32_t num_wrong = 0;         ///< of them with the text of another
};

Mail read_letters(uint64_t seed, emulation::Skip fault, bool is_ordinary = false) {
  Letter letter{};
  emulation::LaunchOptions options;
  options.seed = seed;
  options.host_memory = {{reinterpret_cast<uint8_t*>(&letter), sizeof letter}};
  options.skip = fault;
  options.skip_ordinal = 1;
  emulation::Launch launch(options, [&] { write_letters(&letter, 4, is_ordinary); });
  Mail mail;
  while (!launch.advance(1)) {
    if (letter.number == 0 || (!mail.numbers.empty() && mail.numbers.back() == letter.number)) continue;
    mail.numbers.push_back(letter.number);
    mail.num_wrong += letter.text != 10 * letter.number;
  }
  CHECK_EQ(launch.result().error, std::string());
  CHECK_EQ(letter.number, 4u);  // the end of the launch shows everything
  CHECK_EQ(letter.text, 40u);
  return mail;
}

void check_found(Fault fault, const char* needle, uint32_t at_least = 1) {
  std::string error;
  const uint32_t count = times_found(fault, error);
  if (count < at_least || error.find(needle) == std::string::npos)
    check::report(__FILE__, __LINE__,
                  "fault " + std::to_string(static_cast<int>(fault)) + " found in " +
                      std::to_string(count) + " of 40 schedules: " + error);
  CHECK(count >= at_least);
  CHECK(error.find(needle) != std::string::npos);
}

}  // namespace

TEST_CASE("the correct kernel gives the same answer in every schedule") {
  for (uint64_t seed = 0; seed <= kNumSeeds; ++seed) {
    const Outcome outcome = run(Fault::none, seed);
    if (outcome.found()) check::report(__FILE__, __LINE__, outcome.error);
    CHECK(!outcome.found());
  }
}

TEST_CASE("a missing block barrier is found") {
  check_found(Fault::no_init_barrier, "not initialised");
  check_found(Fault::no_barrier, "");
}

TEST_CASE("a wrong phase is found") { check_found(Fault::wrong_phase, ""); }

TEST_CASE("an over-run of the ring is found") {
  check_found(Fault::ring_overrun, "", kNumSeeds / 2);
  check_found(Fault::early_release, "");
}

TEST_CASE("a read before arrival is found") {
  check_found(Fault::read_before_arrival, "", kNumSeeds / 2);
  check_found(Fault::no_acquire, "");
}

TEST_CASE("an unfenced hand-over to the async proxy is found") {
  check_found(Fault::no_fence, "fence.proxy.async", kNumSeeds);
  check_found(Fault::fence_too_early, "fence.proxy.async");
  check_found(Fault::stale_handover, "");
}

TEST_CASE("wrong arrivals and bytes are found") {
  check_found(Fault::two_releases, "");
  check_found(Fault::two_arrivals, "more than 1 arrivals in one phase");
  check_found(Fault::no_release, "(empty[0]) parity 0", kNumSeeds);
  check_found(Fault::wrong_bytes, "bytes missing", kNumSeeds);
}

TEST_CASE("a hand-over to the host needs a release of system scope") {
  CHECK(read_letters(0, emulation::Skip::none, true).numbers.empty());  // nothing shows by itself
  uint32_t num_wrong = 0;
  for (uint64_t seed = 0; seed <= kNumSeeds; ++seed) {
    const Mail mail = read_letters(seed, emulation::Skip::none);
    CHECK(!mail.numbers.empty() && mail.numbers.front() == 1);
    CHECK_EQ(mail.num_wrong, 0u);
    const Mail unreleased = read_letters(seed, emulation::Skip::system_scope);
    CHECK(unreleased.num_wrong <= 1);
    num_wrong += unreleased.num_wrong;
  }
  CHECK(num_wrong >= kNumSeeds / 4);
}

TEST_CASE("divergent collectives are found") {
  check_found(Fault::diverged, "lanes of one warp diverge", kNumSeeds);
}

TEST_CASE("a deadlock report says who waits for what") {
  const std::string error = run(Fault::no_release, 0).error;
  CHECK(error.find("deadlock: every thread waits") == 0 || error.find("livelock") == 0);
  CHECK(error.find("block 0 warp 0: wait for mbarrier shared+") != std::string::npos);
  CHECK(error.find("(empty[0]) parity 0") != std::string::npos);
  CHECK(error.find("1 of 1 arrivals and 0 bytes missing") != std::string::npos);
  CHECK(error.find("block 0 warp 1: wait for mbarrier") != std::string::npos);
  CHECK(error.find("32 lanes") != std::string::npos);
  const std::string barrier = run(Fault::missing_thread, 0).error;
  CHECK(barrier.find("named barrier 1: 63 of 64 threads have come") != std::string::npos);
}

TEST_CASE("blocks that wait for each other need to be resident together") {
  CHECK(!run(Fault::none, 0, 1).found());  // the first block does not wait for the second
  CHECK(!run(Fault::none, 0, 2, 0).found());
  CHECK(run(Fault::none, 0, 1, 0).error.find("poll with load_acquire_gpu") != std::string::npos);
}

TEST_CASE("the same seed gives the same schedule") {
  for (const uint64_t seed : {3, 4, 5}) {
    const std::string first = run(Fault::no_barrier, seed).error;
    CHECK_EQ(run(Fault::no_barrier, seed).error, first);
  }
}

CHECK_MAIN()

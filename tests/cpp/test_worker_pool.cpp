// Threads, counters and waits under stress; every check counts what was lost or torn.
#include "core/pin.h"
#include "cpu/core_pin.h"
#include "cpu/counters.h"
#include "cpu/worker_pool.h"

#include "check.h"
#include "cpu_seconds.h"
#include "fork_check.h"

#include <mimo_rt/device.h>

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <atomic>
#include <cfenv>
#include <chrono>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace mimo_rt::cpu;
using fixture::process_cpu_seconds;
using fixture::thread_cpu_seconds;

namespace {

class FunctionJob final : public WorkerPool::Job {
 public:
  explicit FunctionJob(std::function<void(uint32_t)> body) : body_(std::move(body)) {}
  void work(uint32_t worker_idx) noexcept override { body_(worker_idx); }

 private:
  std::function<void(uint32_t)> body_;
};

uint32_t num_threads_of_process() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "Threads:") {
      uint32_t count = 0;
      status >> count;
      return count;
    }
  return 0;
}

}  // namespace

TEST_CASE("every worker runs every job once and plain memory is handed over both ways") {
  for (const uint32_t num_workers : {1u, 2u, 5u}) {
    WorkerPool pool({.num_workers = num_workers, .pin_workers = true, .park_after_us = 50});
    std::vector<uint64_t> counts(num_workers * 16);  // plain, one cache line each
    uint64_t from_caller = 0, wrong = 0;
    for (uint64_t job_number = 1; job_number <= 2000; ++job_number) {
      from_caller = job_number;
      FunctionJob job([&](uint32_t worker) {
        counts[worker * 16] += from_caller == job_number ? 1 : 1000000;
      });
      pool.run(job);
      for (uint32_t w = 0; w < num_workers; ++w) wrong += counts[w * 16] != job_number;
    }
    CHECK_EQ(wrong, 0u);
  }
}

TEST_CASE("news reach the caller while workers run, and wake it only then") {
  WorkerPool pool({.num_workers = 2, .pin_workers = false, .park_after_us = 50});
  for (const bool tells : {true, false}) {
    constexpr uint32_t kNumNews = 100;
    std::atomic<uint32_t> said{0}, heard{0};
    uint32_t num_calls = 0, num_lost = 0, num_ended = 0, seen_ended = 0;  // plain memory
    FunctionJob job([&](uint32_t worker) {
      if (worker == 1) return;
      for (uint32_t i = 1; i <= kNumNews; ++i) {
        said = i;
        if (tells) pool.notify_caller();
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(tells ? 5 : 0);
        while (heard < i && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        num_lost += heard < i;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      ++num_ended;
    });
    const double begin = thread_cpu_seconds();
    pool.run(job, [&] {
      ++num_calls;
      heard = said.load();
      if (heard == kNumNews) seen_ended = kNumNews;
    });
    CHECK_EQ(num_ended, 1u);
    CHECK_EQ(seen_ended, kNumNews);  // the last call comes after the end
    CHECK_EQ(heard.load(), kNumNews);
    if (tells) CHECK_EQ(num_lost, 0u);
    else CHECK(num_lost >= kNumNews - 1 && num_calls <= 2);  // control: nobody wakes the caller
    CHECK(thread_cpu_seconds() - begin < 0.050);  // of 100 ms and more
  }
}

TEST_CASE("jobs arrive whether workers spin or sleep") {
  WorkerPool pool({.num_workers = 3, .pin_workers = false, .park_after_us = 0});
  std::atomic<uint32_t> count{0};
  FunctionJob job([&](uint32_t) { ++count; });
  for (uint32_t i = 0; i < 200; ++i) {
    pool.run(job);
    if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK_EQ(count.load(), 600u);
}

TEST_CASE("pools leave no thread behind") {
  const uint32_t before = num_threads_of_process();
  for (uint32_t i = 0; i < 50; ++i) {
    WorkerPool pool({.num_workers = 4, .pin_workers = true, .park_after_us = i % 2 ? 0u : 1000u});
    CHECK_EQ(pool.num_workers(), 4u);
  }
  for (int i = 0; i < 1000 && num_threads_of_process() != before; ++i)  // the system lists joined ones a while
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK_EQ(num_threads_of_process(), before);
  CHECK_THROWS(invalid_argument, "num_workers", WorkerPool({.num_workers = 0}));
}

TEST_CASE("pinning binds workers to distinct cores and leaves the caller alone") {
  cpu_set_t before;
  sched_getaffinity(0, sizeof(before), &before);
  const uint32_t num_workers = static_cast<uint32_t>(CPU_COUNT(&before));
  WorkerPool pool({.num_workers = num_workers, .pin_workers = true, .park_after_us = 50});
  std::vector<cpu_set_t> sets(num_workers);
  FunctionJob job([&](uint32_t w) { sched_getaffinity(0, sizeof(cpu_set_t), &sets[w]); });
  pool.run(job);
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const cpu_set_t& set : sets) {
    // Under a CPU quota nobody is bound.
    const bool is_bound = mimo_rt::num_usable_cores() == num_workers;
    CHECK_EQ(CPU_COUNT(&set), is_bound ? 1 : int(num_workers));
    CPU_OR(&all, &all, &set);
  }
  CHECK(CPU_EQUAL(&all, &before));
  cpu_set_t after;
  sched_getaffinity(0, sizeof(after), &after);
  CHECK(CPU_EQUAL(&before, &after));
}

TEST_CASE("threads get cores only when there is one for each") {
  const uint32_t usable = mimo_rt::num_usable_cores();
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  const bool has_quota = usable < static_cast<uint32_t>(CPU_COUNT(&set));
  CHECK_EQ(mimo_rt::cores_to_pin(1).empty(), has_quota);
  CHECK(mimo_rt::cores_to_pin(static_cast<uint32_t>(CPU_COUNT(&set)) + 1).empty());
}

TEST_CASE("a worker is let go while its core is shared, and bound again afterwards") {
  cpu_set_t before;
  sched_getaffinity(0, sizeof(before), &before);
  int core = 0;
  while (!CPU_ISSET(static_cast<size_t>(core), &before)) ++core;
  const auto num_cores = [] {
    cpu_set_t set;
    sched_getaffinity(0, sizeof(set), &set);
    return CPU_COUNT(&set);
  };
  std::thread([&] {
    constexpr int64_t kSecond = 1'000'000'000, kWindow = CorePin::kReviewNs;
    CorePin pin;
    CHECK(!pin.is_bound());
    pin.bind(core);
    CHECK(pin.is_bound());
    CHECK_EQ(num_cores(), 1);
    int64_t now = std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
    now += kWindow;
    int64_t delayed = 1000 * kSecond;  // more than this thread has had: a long delay, once
    pin.judge(now, delayed);
    CHECK(!pin.is_bound());
    CHECK_EQ(num_cores(), CPU_COUNT(&before));
    const auto pass = [&](int64_t ns, int64_t part) {  // kept waiting for ns / part
      for (const int64_t end = now + ns; now < end;) {
        now += kWindow;
        delayed += part ? kWindow / part : 0;
        pin.judge(now, delayed);
      }
    };
    pass(kSecond - 2 * kWindow, 0);
    CHECK(!pin.is_bound());
    pass(3 * kWindow, 2);  // the time is over, but the core still shared
    CHECK(!pin.is_bound());
    pass(kWindow, 0);
    CHECK(pin.is_bound());
    CHECK_EQ(num_cores(), 1);
    pass(kSecond, 20);  // a little is no reason
    CHECK(pin.is_bound());
    pass(kWindow, 2);  // the second time it lasts twice as long
    pass(2 * kSecond - 2 * kWindow, 0);
    CHECK(!pin.is_bound());
    pass(3 * kWindow, 0);
    CHECK(pin.is_bound());
    pass(CorePin::kMaxReleaseNs, 0);  // good for long: the next time counts as the first
    pass(kWindow, 2);
    CHECK(!pin.is_bound());
    pass(kSecond + kWindow, 0);
    CHECK(pin.is_bound());
  }).join();
}

TEST_CASE("a core that does not exist, or is taken away, is missing until it is given back") {
  cpu_set_t before;
  sched_getaffinity(0, sizeof(before), &before);
  int core = 0;
  while (!CPU_ISSET(static_cast<size_t>(core), &before)) ++core;
  std::thread([&] {
    constexpr int64_t kWindow = CorePin::kReviewNs;
    const auto now_ns = [] {
      return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
    };
    const auto can_run_anywhere = [&] {
      cpu_set_t set;
      sched_getaffinity(0, sizeof(set), &set);
      return CPU_EQUAL(&set, &before) != 0;
    };
    CorePin absent;
    CHECK_EQ(absent.missing_core(), -1);
    absent.bind(CPU_SETSIZE - 1);
    CHECK(!absent.is_bound() && can_run_anywhere());
    CHECK_EQ(absent.missing_core(), CPU_SETSIZE - 1);
    absent.judge(now_ns() + CorePin::kFirstReleaseNs + kWindow, 0);  // it asks again
    CHECK_EQ(absent.missing_core(), CPU_SETSIZE - 1);

    if (CPU_COUNT(&before) < 2) return;  // the only one cannot be taken away
    CorePin taken;
    taken.bind(core);
    CHECK(taken.is_bound());
    CHECK_EQ(taken.missing_core(), -1);
    std::this_thread::sleep_for(std::chrono::nanoseconds(kWindow + kWindow / 4));
    taken.review();
    CHECK_EQ(taken.missing_core(), -1);  // control: the thread is where it was bound to
    taken.bind(core);  // on a busy machine it has been let go
    cpu_set_t others = before;
    CPU_CLR(static_cast<size_t>(core), &others);
    CHECK_EQ(sched_setaffinity(0, sizeof(others), &others), 0);  // as a control group or taskset would
    std::this_thread::sleep_for(std::chrono::nanoseconds(kWindow + kWindow / 4));
    taken.review();
    CHECK(!taken.is_bound());
    CHECK_EQ(taken.missing_core(), core);
    taken.judge(now_ns() + CorePin::kFirstReleaseNs / 2, 0);
    CHECK_EQ(taken.missing_core(), core);
    taken.judge(now_ns() + 2 * CorePin::kFirstReleaseNs, 0);
    CHECK(taken.is_bound());
    CHECK_EQ(taken.missing_core(), -1);
    CHECK_EQ(sched_getcpu(), core);
  }).join();
}

TEST_CASE("a fork gets an error instead of waiting for workers it does not have") {
  for (const uint32_t park_after_us : {0u, 1'000'000u}) {
    const WorkerPool::Options options{
        .num_workers = 2, .pin_workers = false, .park_after_us = park_after_us};
    auto pool = std::make_unique<WorkerPool>(options);
    std::atomic<uint32_t> count{0};
    FunctionJob job([&](uint32_t) { ++count; });
    pool->run(job);
    fixture::check_refused_in_fork([&] {
      const auto of_fork = std::move(pool);  // must not join when it goes
      of_fork->run(job);
    });
    pool->run(job);  // control: the parent goes on
    CHECK_EQ(count.load(), 4u);
  }
}

#if !defined(__SANITIZE_THREAD__)  // it does not support threads that a fork begins
TEST_CASE("a pool that a fork opens works and ends, though its threads get the handles of the parent's") {
  const WorkerPool::Options options{.num_workers = 2, .pin_workers = false, .park_after_us = 0};
  auto pool = std::make_unique<WorkerPool>(options);
  fixture::check_in_fork([&] {
    std::atomic<uint32_t> count{0};
    FunctionJob job([&](uint32_t) { ++count; });
    auto of_fork = std::make_unique<WorkerPool>(options);
    pool.reset();
    of_fork->run(job);
    of_fork.reset();
    return count.load() == 2u;
  });
}
#endif

// FP8 products of the AVX2 kernels read weights as FP32 subnormals.
TEST_CASE("workers round to nearest and keep subnormals, whatever the caller has set") {
#if defined(__SSE2__)
  constexpr uint32_t kFlush = 0x8040;  // FTZ and DAZ: of results, of inputs
  const auto flushes = [] { return (_mm_getcsr() & kFlush) != 0; };
  const auto set_flush = [](bool on) { _mm_setcsr((_mm_getcsr() & ~kFlush) | (on ? kFlush : 0)); };
#else
  const auto flushes = [] { return false; };
  const auto set_flush = [](bool) {};
#endif
  std::fesetround(FE_UPWARD);
  set_flush(true);
  std::atomic<int> inherited{-1};
  std::atomic<bool> inherits_flush{false};
  std::thread([&] { inherited = std::fegetround(), inherits_flush = flushes(); }).join();
  const bool is_flushing = flushes();
  WorkerPool pool({.num_workers = 2, .pin_workers = false, .park_after_us = 50});
  std::atomic<uint32_t> num_nearest{0}, num_flushing{0};
  FunctionJob job([&](uint32_t) {
    num_nearest += std::fegetround() == FE_TONEAREST;
    num_flushing += flushes();
  });
  pool.run(job);
  std::fesetround(FE_TONEAREST);
  set_flush(false);
  CHECK_EQ(num_nearest.load(), 2u);
  CHECK_EQ(num_flushing.load(), 0u);
  CHECK_EQ(inherited.load(), FE_UPWARD);  // control: a plain thread inherits both
  CHECK_EQ(inherits_flush.load(), is_flushing);
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)  // they need more addresses than the limit leaves
TEST_CASE("a pool that the system gives too few threads ends those it has and says how many") {
  fixture::check_in_fork([] {  // the limit stays there
    uint64_t num_pages = 0;
    std::ifstream("/proc/self/statm") >> num_pages;
    const rlim_t limit = num_pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) + (20u << 20);
    const rlimit addresses{limit, limit};
    if (setrlimit(RLIMIT_AS, &addresses) != 0) return false;
    const int num_failures = check::failures();
    CHECK_THROWS(unavailable, "expected 300, the system gave ", WorkerPool({.num_workers = 300, .pin_workers = false}));
    return check::failures() == num_failures;
  });
}
#endif

TEST_CASE("sleeping workers use no CPU time") {
  for (const bool sleeps : {true, false}) {
    WorkerPool pool({.num_workers = 2, .pin_workers = true,
                     .park_after_us = sleeps ? 100u : 10'000'000u});
    FunctionJob job([](uint32_t) {});
    pool.run(job);
    const double begin = process_cpu_seconds();
    // The control may share its cores with others: it gets longer to use what sleepers must not.
    double used = 0.0;
    for (int nap = 0; nap < (sleeps ? 1 : 40) && used <= 0.020; ++nap) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      used = process_cpu_seconds() - begin;
    }
    if (sleeps) CHECK(used < 0.020);
    else CHECK(used > 0.020);  // control: the measurement sees spinning workers
  }
}

TEST_CASE("a chain of counters hands plain memory from worker to worker") {
  // Worker w adds 1 to a plain number after worker w - 1 has, around the ring, many rounds. Once
  // with waiters that spin, where there are cores for them, and once with waiters that sleep at once.
  for (const auto& [num_workers, spin_ns] :
       {std::pair{2u, WaitMonitor::kSpinNs}, std::pair{2u, int64_t{0}}, std::pair{8u, int64_t{0}}}) {
    constexpr uint64_t kRounds = 2000;
    WorkerPool pool({.num_workers = num_workers, .pin_workers = true, .park_after_us = 50});
    Counters counters(num_workers);
    WaitMonitor monitor(num_workers, 60'000, spin_ns);
    uint64_t shared = 0;
    FunctionJob job([&](uint32_t w) {
      const uint32_t previous = (w + num_workers - 1) % num_workers;
      for (uint64_t round = 0; round < kRounds; ++round) {
        const uint64_t expected = w == 0 ? round : round + 1;
        if (!monitor.wait(counters, {w, 0, previous, expected, nullptr, nullptr})) return;
        ++shared;
        counters.signal(w);
      }
    });
    pool.run(job);
    CHECK(!monitor.has_stopped());
    CHECK_EQ(shared, kRounds * num_workers);
  }
}

TEST_CASE("a long wait sleeps") {
  for (const bool sleeps : {true, false}) {
    WorkerPool pool({.num_workers = 2, .pin_workers = false, .park_after_us = 50});
    Counters counters(1);
    WaitMonitor monitor(2, 60'000, sleeps ? WaitMonitor::kSpinNs : int64_t{60'000'000'000});
    double used = 0.0;
    bool was_met = false;
    FunctionJob job([&](uint32_t w) {
      if (w == 1) {
        const double begin = thread_cpu_seconds();
        was_met = monitor.wait(counters, {w, 0, 0, 1, nullptr, nullptr});
        used = thread_cpu_seconds() - begin;
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(sleeps ? 300 : 3000));
      counters.signal(0);
    });
    pool.run(job);
    CHECK(was_met);
    if (sleeps) CHECK(used < 0.1);
    else CHECK(used > 0.1);  // control: a spinning waiter is seen, even on a busy machine
  }
}

TEST_CASE("a sleeper wakes with the signal, not with its limit") {
  Counters counters(1);
  std::atomic<bool> is_over{false};
  const auto begin = std::chrono::steady_clock::now();
  std::thread sleeper([&] {
    while (counters.load(0) < 3) counters.sleep(0, 3, 60'000'000'000);
    is_over = true;
  });
  for (int i = 0; i < 3; ++i) {
    CHECK(!is_over);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    counters.signal(0);
  }
  sleeper.join();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(50));
  const auto end = std::chrono::steady_clock::now();
  counters.sleep(0, 3, 60'000'000'000);  // reached: does not sleep
  CHECK(std::chrono::steady_clock::now() - end < std::chrono::seconds(50));
  counters.sleep(0, 4, 1'000'000);  // nobody signals: the limit ends it
}

TEST_CASE("many signallers, one counter: a waiter sees all their writes") {
  constexpr uint32_t kWorkers = 4;
  WorkerPool pool({.num_workers = kWorkers, .pin_workers = true, .park_after_us = 50});
  Counters counters(2);
  WaitMonitor monitor(kWorkers, 60'000, 0);
  std::vector<uint64_t> slots(kWorkers * 16);
  uint64_t wrong = 0;
  FunctionJob job([&](uint32_t w) {
    for (uint64_t epoch = 0; epoch < 2000; ++epoch) {
      slots[w * 16] = epoch;
      counters.signal(0);
      if (w == 0) {
        if (!monitor.wait(counters, {w, 0, 0, (epoch + 1) * kWorkers, nullptr, nullptr})) return;
        for (uint32_t other = 0; other < kWorkers; ++other) wrong += slots[other * 16] != epoch;
        counters.signal(1);
      }
      if (!monitor.wait(counters, {w, 0, 1, epoch + 1, nullptr, nullptr})) return;
    }
  });
  pool.run(job);
  CHECK(!monitor.has_stopped());
  CHECK_EQ(wrong, 0u);
}

TEST_CASE("a wait that nobody meets stops all workers, each with its report") {
  WorkerPool pool({.num_workers = 3, .pin_workers = false, .park_after_us = 50});
  Counters counters(3);
  WaitMonitor monitor(3, 30);
  std::atomic<uint32_t> num_left{0};
  counters.signal(1);
  FunctionJob job([&](uint32_t w) {
    // Worker 2 does not wait at all; 0 and 1 wait for ever.
    if (w < 2 && !monitor.wait(counters, {w, 7 + w, w, 5, nullptr, nullptr})) ++num_left;
  });
  pool.run(job);
  CHECK(monitor.has_stopped());
  CHECK_EQ(num_left.load(), 2u);
  CHECK(monitor.first_worker() < 2);
  CHECK_EQ(monitor.reports()[1].task_idx, 8u);
  CHECK_EQ(monitor.reports()[1].counter, 1u);
  CHECK_EQ(monitor.reports()[1].expected, 5u);
  CHECK_EQ(monitor.reports()[1].seen, 1u);
  CHECK_EQ(monitor.reports()[2].expected, 0u);
  CHECK(monitor.wait(counters, {0, 0, 1, 1, nullptr, nullptr}));  // a met wait still passes
}

TEST_CASE("a wait longer than the deadline is no hang while others make progress") {
  for (const bool moves : {true, false}) {  // false: the control
    WorkerPool pool({.num_workers = 2, .pin_workers = false, .park_after_us = 50});
    Counters counters(2);
    WaitMonitor monitor(2, 250);
    bool was_met = false;
    FunctionJob job([&](uint32_t w) {
      if (w == 0) {
        was_met = monitor.wait(counters, {0, 0, 0, 1, nullptr, nullptr});
        return;
      }
      for (int i = 0; i < 100; ++i) {  // one second
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        if (moves) counters.signal(1);
      }
      counters.signal(0);
    });
    pool.run(job);
    CHECK_EQ(was_met, moves);
    CHECK_EQ(monitor.has_stopped(), !moves);
  }
}

CHECK_MAIN()

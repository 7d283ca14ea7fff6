// A token that the workers of a CPU hand around by a counter, and that nothing else holds up.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/counters.h"
#include "cpu/worker_pool.h"

namespace mimo_rt::kbench {

class CounterRelay final : cpu::WorkerPool::Job {
 public:
  struct Options {
    uint32_t num_hops = 0;        ///< more than workers + 1: the first ones wait for threads to come
    uint32_t num_signallers = 1;  ///< of a hop
    bool all_wait = false;        ///< for every hop; else only who has its turn
  };

  CounterRelay(cpu::WorkerPool& pool, const Options& options) : pool_(pool), options_(options) {}

  /// ns per hop from when all workers have had their turn. @throws Error{timeout}
  double run();
  /// Whether the token went through every hop of the last run, each after the one before.
  bool is_right() const;

 private:
  static constexpr uint32_t kValues = 16;  ///< a cache line
  static constexpr uint32_t kTimeoutMs = 10'000;

  void work(uint32_t worker) noexcept override;

  cpu::WorkerPool& pool_;
  const Options options_;
  cpu::Counters* counters_ = nullptr;
  cpu::WaitMonitor* monitor_ = nullptr;
  alignas(64) std::array<std::array<uint32_t, kValues>, 2> token_{};  ///< by even and odd hops
  double begin_ns_ = 0.0, end_ns_ = 0.0;
};

}  // namespace mimo_rt::kbench

#include "kbench/counter_relay.h"

#include <chrono>

#include "core/checks.h"

namespace mimo_rt::kbench {
namespace {

double now_ns() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double CounterRelay::run() {
  const uint32_t num_workers = pool_.num_workers();
  cpu::Counters counters(1);
  cpu::WaitMonitor monitor(num_workers, kTimeoutMs, pool_.is_oversubscribed() ? 0 : cpu::WaitMonitor::kSpinNs);
  counters_ = &counters, monitor_ = &monitor;
  token_ = {};
  pool_.run(*this);
  MIMO_RT_CHECK(!monitor.has_stopped(), timeout, "counter relay", "worker ", monitor.first_worker(),
                " waited ", kTimeoutMs, " ms for the worker before it");
  return (end_ns_ - begin_ns_) / (options_.num_hops - 1 - num_workers);
}

bool CounterRelay::is_right() const {
  for (const uint32_t value : token_[options_.num_hops % 2])
    if (value != options_.num_hops) return false;
  return true;
}

void CounterRelay::work(uint32_t worker) noexcept {
  const uint32_t num_workers = pool_.num_workers();
  for (uint32_t hop = 0; hop < options_.num_hops; ++hop) {
    const uint32_t turn = (worker + num_workers - hop % num_workers) % num_workers;
    if (turn != 0 && !options_.all_wait) continue;
    const uint64_t expected = uint64_t{hop} * options_.num_signallers;
    if (!monitor_->wait(*counters_, {worker, hop, 0, expected, nullptr, nullptr})) return;
    if (turn >= options_.num_signallers) continue;
    if (turn == 0) {
      if (hop == num_workers) begin_ns_ = now_ns();
      if (hop + 1 == options_.num_hops) end_ns_ = now_ns();
      const auto& before = token_[hop % 2];
      for (uint32_t i = 0; i < kValues; ++i) token_[(hop + 1) % 2][i] = before[(i + 1) % kValues] + 1;
    }
    counters_->signal(0);
  }
}

}  // namespace mimo_rt::kbench

#include <algorithm>
#include <limits>

#include <mimo_rt/device.h>

#include "kbench/counter_relay.h"
#include "kbench/cpu_subjects.h"
#include "kbench/edge_case.h"

namespace mimo_rt::kbench {
namespace {

class CpuEdges final : public Subject {
 public:
  explicit CpuEdges(const KernelCase& c)
      : Subject(c),
        pool_({.num_workers = c.num_workers}),
        relay_(pool_, {c.num_hops, c.num_signallers, c.kernel == "edge_gather"}) {
    work_.num_hops = c.num_hops - 1 - c.num_workers;
  }

  double worst_error() override {
    relay_.run();
    return relay_.is_right() ? 0.0 : std::numeric_limits<double>::infinity();
  }

  KernelTimes run(uint32_t num_calls) override {
    KernelTimes times;
    for (uint32_t i = 0; i < num_calls; ++i) times.call_s.push_back(1e-9 * relay_.run() * work_.num_hops);
    return times;
  }

 private:
  cpu::WorkerPool pool_;
  CounterRelay relay_;
};

}  // namespace

std::unique_ptr<Subject> make_cpu_edges(const KernelCase& kernel_case) {
  const KernelCase c = complete_edge_case(kernel_case, num_usable_cores());
  MIMO_RT_CHECK(c.num_hops >= c.num_workers + 2, invalid_argument, kWhere,
                "num_hops: expected at least num_workers + 2, ", c.num_workers + 2, ", got ", c.num_hops);
  return std::make_unique<CpuEdges>(c);
}

}  // namespace mimo_rt::kbench

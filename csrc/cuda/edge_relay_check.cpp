// Checks of the relay kernel's arguments. No CUDA in here: they are tested on every machine.
#include "cuda/edge_relay.h"

#include "cuda/param_checks.h"

namespace mimo_rt::cuda {

void check_edge_relay(const EdgeRelayParams& p, uint32_t num_blocks) {
  constexpr const char* kWhere = "cuda.edge_relay";
  const bool is_between_blocks = p.edge != RelayEdge::same_worker;
  MIMO_RT_CHECK(p.edge <= RelayEdge::gather, invalid_argument, kWhere, "edge: expected 0 .. 3, got ",
                static_cast<uint32_t>(p.edge));
  MIMO_RT_CHECK(num_blocks >= (is_between_blocks ? 2u : 1u), invalid_argument, kWhere,
                "num_blocks: expected at least 2, which wait for each other, got ", num_blocks);
  MIMO_RT_CHECK(p.num_hops != 0, invalid_argument, kWhere, "num_hops: expected > 0, got 0");
  MIMO_RT_CHECK(p.num_hops <= kMaxRelayHops && p.first_hop <= kMaxRelayHops - p.num_hops, capacity,
                kWhere, "first_hop + num_hops: expected at most ", kMaxRelayHops, ", got ",
                p.first_hop, " + ", p.num_hops);
  const uint32_t most = p.edge == RelayEdge::gather ? num_blocks : 1;
  MIMO_RT_CHECK(p.num_signallers >= 1 && p.num_signallers <= most, invalid_argument, kWhere,
                "num_signallers: expected 1 .. ", most, ", got ", p.num_signallers);
  if (p.edge == RelayEdge::tag) check_pointer(kWhere, "words", p.words, 8);
  else check_pointer(kWhere, "token", p.token, 4);
  if (p.edge >= RelayEdge::counter)
    check_pointer(kWhere, "counter", p.counter, alignof(CounterCell));
  if (!is_between_blocks) return;
  check_pointer(kWhere, "watchdog.stop", p.watchdog.stop, 4);
  check_pointer(kWhere, "watchdog.report", p.watchdog.report, alignof(HangReport));
  MIMO_RT_CHECK(p.watchdog.deadline_ns != 0, invalid_argument, kWhere,
                "watchdog.deadline_ns: expected > 0, got 0");
}

}  // namespace mimo_rt::cuda

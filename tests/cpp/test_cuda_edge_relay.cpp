// The relay of edges (device/tasks/edge_relay.cuh), its own source under the emulated GPU: the token
// comes through every hop in every schedule, launch after launch; a barrier or a wait that is
// missing is found; parameters are refused by name.
#include "kernel_launch.h"

#include "cuda/device/tasks/edge_relay.cuh"
#include "cuda/edge_relay.h"

#include <algorithm>
#include <numeric>
#include <vector>

using namespace mimo_rt;
using namespace fixture;
using cuda::RelayEdge;

namespace {

/// Memory of a relay by itself.
struct Relay {
  static constexpr uint32_t kBlocks = 3;

  Relay() {
    std::iota(token.begin(), token.begin() + cuda::kRelayThreads, 0u);
    std::copy(token.begin(), token.end(), words.begin());
  }

  /// The error of the emulation, or what is wrong with the token.
  std::string run(RelayEdge edge, uint32_t num_hops, uint64_t seed,
                  emulation::Skip skip = emulation::Skip::none, uint32_t skip_ordinal = 0) {
    cuda::EdgeRelayParams p;
    p.edge = edge;
    p.first_hop = num_done;
    p.num_hops = num_hops;
    p.num_signallers = edge == RelayEdge::gather ? 2 : 1;
    p.token = token.data();
    p.words = words.data();
    p.counter = &counter;
    p.watchdog = {&stop, &report, 300'000};
    cuda::check_edge_relay(p, kBlocks);
    emulation::LaunchOptions options =
        options_of({.num_blocks = kBlocks, .seed = seed}, cuda::kRelayThreads, sizeof(cuda::RelayShared));
    options.skip = skip;
    options.skip_ordinal = skip_ordinal;
    const std::string error = emulation::launch(options, cuda::edge_relay_kernel, p).error;
    num_done += num_hops;
    if (!error.empty()) return error;
    if (stop != cuda::kRunning) return "hang";
    for (uint32_t i = 0; i < cuda::kRelayThreads; ++i) {
      const uint32_t from = (i + 32 * num_done) % cuda::kRelayThreads;
      const uint32_t at = num_done % 2 * cuda::kRelayThreads + i;
      const uint32_t value = edge == RelayEdge::tag ? static_cast<uint32_t>(words[at]) : token[at];
      if (value != from + num_done) return "wrong token";
    }
    return "";
  }

  std::vector<uint32_t> token = std::vector<uint32_t>(2 * cuda::kRelayThreads);
  std::vector<uint64_t> words = std::vector<uint64_t>(2 * cuda::kRelayThreads);
  cuda::CounterCell counter{};
  uint32_t stop = 0, num_done = 0;
  cuda::HangReport report{};
};

}  // namespace

TEST_CASE("the token comes through every hop, launch after launch, in every schedule") {
  for (const RelayEdge edge : {RelayEdge::same_worker, RelayEdge::tag, RelayEdge::counter, RelayEdge::gather})
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Relay relay;
      for (const uint32_t num_hops : {1u, 5u, 4u}) CHECK_EQ(relay.run(edge, num_hops, seed), std::string());
      CHECK_EQ(relay.report.is_written, 0u);
    }
}

TEST_CASE("a hop whose barrier or wait is left out is found") {
  const auto is_found = [](RelayEdge edge, emulation::Skip skip) {
    for (uint64_t seed = 1; seed < 10; ++seed)
      for (uint32_t ordinal = 1; ordinal < 4; ++ordinal) {
        Relay relay;
        if (!relay.run(edge, 6, seed, skip, ordinal).empty()) return true;
      }
    return false;
  };
  CHECK(is_found(RelayEdge::same_worker, emulation::Skip::mbarrier_wait));
  for (const RelayEdge edge : {RelayEdge::tag, RelayEdge::counter, RelayEdge::gather})
    CHECK(is_found(edge, emulation::Skip::named_barrier));
}

TEST_CASE("parameters of a relay are refused by name") {
  cuda::CounterCell counter{};
  uint32_t word = 0;
  uint64_t tagged = 0;
  cuda::HangReport report{};
  cuda::EdgeRelayParams good;
  good.num_hops = 1;
  good.token = &word;
  good.words = &tagged;
  good.counter = &counter;
  good.watchdog = {&word, &report, 1};
  cuda::check_edge_relay(good, 2);
  const auto refuse = [&](ErrorCode code, const char* text, const auto& change, uint32_t num_blocks = 2) {
    cuda::EdgeRelayParams p = good;
    change(p);
    try {
      cuda::check_edge_relay(p, num_blocks);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.code() == code && std::string(error.what()).find(text) != std::string::npos);
    }
  };
  using P = cuda::EdgeRelayParams&;
  using enum ErrorCode;
  refuse(invalid_argument, "num_blocks: expected at least 2", [](P) {}, 1);
  refuse(invalid_argument, "num_hops: expected > 0", [](P p) { p.num_hops = 0; });
  refuse(capacity, "first_hop + num_hops", [](P p) { p.first_hop = cuda::kMaxRelayHops; });
  refuse(invalid_argument, "num_signallers: expected 1 .. 1, got 2", [](P p) { p.num_signallers = 2; });
  refuse(invalid_argument, "edge", [](P p) { p.edge = static_cast<RelayEdge>(4); });
  refuse(invalid_argument, "token", [](P p) { p.token = nullptr; });
  refuse(invalid_argument, "counter", [](P p) { p.counter = nullptr; });
  refuse(invalid_argument, "words", [](P p) { p.edge = RelayEdge::tag, p.words = nullptr; });
  refuse(invalid_argument, "watchdog.stop", [](P p) { p.watchdog.stop = nullptr; });
  refuse(invalid_argument, "watchdog.deadline_ns", [](P p) { p.watchdog.deadline_ns = 0; });
}

CHECK_MAIN()

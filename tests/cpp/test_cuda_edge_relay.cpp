// The relay of edges (device/tasks/edge_relay.cuh), its own source under the emulated GPU: the token
// comes through every hop in every schedule, launch after launch; a barrier or a wait that is
// missing is found; parameters are refused by name. native_cuda_edge_relay.cpp builds the same tests for a real GPU.
#include "kernel_launch.h"

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "cuda/device/tasks/edge_relay.cuh"
#endif
#include "cuda/edge_relay.h"
#include "kernel_memory.h"

#include <algorithm>
#include <numeric>
#include <vector>

using namespace mimo_rt;
using namespace fixture;
using cuda::RelayEdge;

namespace {

constexpr uint32_t kBlocks = 3;

// Each returns an error text, or "".
#if defined(MIMO_RT_TEST_ON_GPU)
constexpr uint64_t kDeadlineNs = 1'000'000'000;
std::string launch(const cuda::EdgeRelayParams& params, const Launch&) {
  cuda::launch_edge_relay(params, {.num_blocks = kBlocks});
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}
#else
constexpr uint64_t kDeadlineNs = 300'000;
emulation::LaunchOptions relay_options(uint64_t seed) {
  return options_of({.num_blocks = kBlocks, .seed = seed}, cuda::kRelayThreads, sizeof(cuda::RelayShared));
}
std::string launch(const cuda::EdgeRelayParams& params, const emulation::LaunchOptions& options) {
  cuda::check_edge_relay(params, kBlocks);
  return emulation::launch(options, cuda::edge_relay_kernel, params).error;
}
std::string launch(const cuda::EdgeRelayParams& params, const Launch& launched) {
  return launch(params, relay_options(launched.seed));
}
#endif

/// Memory of a relay by itself.
struct Relay {
  Relay() {
    std::iota(token.begin(), token.begin() + cuda::kRelayThreads, 0u);
    std::copy(token.begin(), token.begin() + cuda::kRelayThreads, words.begin());
  }

  /// The error of the launch, or what is wrong with the token.
  template <typename Options>
  std::string run(RelayEdge edge, uint32_t num_hops, const Options& options) {
    cuda::EdgeRelayParams p;
    p.edge = edge;
    p.first_hop = num_done;
    p.num_hops = num_hops;
    p.num_signallers = edge == RelayEdge::gather ? 2 : 1;
    p.token = token.data();
    p.words = words.data();
    p.counter = counter.data();
    p.watchdog = {stop.data(), report.data(), kDeadlineNs};
    const std::string error = launch(p, options);
    num_done += num_hops;
    if (!error.empty()) return error;
    if (stop[0] != cuda::kRunning) return "hang";
    for (uint32_t i = 0; i < cuda::kRelayThreads; ++i) {
      const uint32_t from = (i + 32 * num_done) % cuda::kRelayThreads;
      const uint32_t at = num_done % 2 * cuda::kRelayThreads + i;
      const uint32_t value = edge == RelayEdge::tag ? static_cast<uint32_t>(words[at]) : token[at];
      if (value != from + num_done) return "wrong token";
    }
    return "";
  }

  KernelVector<uint32_t> token = KernelVector<uint32_t>(2 * cuda::kRelayThreads), stop = KernelVector<uint32_t>(1);
  KernelVector<uint64_t> words = KernelVector<uint64_t>(2 * cuda::kRelayThreads);
  KernelVector<cuda::CounterCell> counter = KernelVector<cuda::CounterCell>(1);
  KernelVector<cuda::HangReport> report = KernelVector<cuda::HangReport>(1);
  uint32_t num_done = 0;
};

}  // namespace

TEST_CASE("the token comes through every hop, launch after launch, in every schedule") {
  for (const RelayEdge edge : {RelayEdge::same_worker, RelayEdge::tag, RelayEdge::counter, RelayEdge::gather})
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Relay relay;
      for (const uint32_t num_hops : {1u, 5u, 4u}) CHECK_EQ(relay.run(edge, num_hops, Launch{.seed = seed}), std::string());
      CHECK_EQ(relay.report[0].is_written, 0u);
    }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a hop whose barrier or wait is left out is found") {
  const auto is_found = [](RelayEdge edge, emulation::Skip skip) {
    for (uint64_t seed = 1; seed < 10; ++seed)
      for (uint32_t ordinal = 1; ordinal < 4; ++ordinal) {
        Relay relay;
        emulation::LaunchOptions options = relay_options(seed);
        options.skip = skip;
        options.skip_ordinal = ordinal;
        if (!relay.run(edge, 6, options).empty()) return true;
      }
    return false;
  };
  CHECK(is_found(RelayEdge::same_worker, emulation::Skip::mbarrier_wait));
  for (const RelayEdge edge : {RelayEdge::tag, RelayEdge::counter, RelayEdge::gather})
    CHECK(is_found(edge, emulation::Skip::named_barrier));
}
#endif

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

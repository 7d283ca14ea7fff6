// The emulated GPU: blocks, warps and lanes, and what they can wait for.
//
// One fiber per CUDA thread ("lane"), so that kernel source stays as it is: every lane has its own
// variables and control flow. Lanes run until an operation of emulation/ptx.h makes them wait; a
// wait is a predicate that the scheduler (schedule.h) tests without waking the lane.
//
// Found: wrong waits, phases, arrivals and bytes; missing barriers (in some schedules; under
// ThreadSanitizer in all, race_check.h); reads before arrival, over-runs, unfenced hand-overs to
// the async proxy; hand-overs to the host that are not of system scope (host_memory.h); divergent
// collectives; deadlocks. Not modelled: weak memory order and scopes otherwise (a release of system
// scope by one lane shows the host also the stores of lanes that it never synchronised with), bank
// conflicts, registers, time, PTX text that is wrong but assembles, and the rounding inside a tensor
// core: here each addition is rounded to nearest, while Hopper aligns 16 products and the accumulator
// at 25 fractional bits and truncates (MMA-Sim, arXiv 2511.10909; LaunchOptions::cuts_sums does so,
// but has met no GPU). So the bits of products are not those of hardware, and what is compared with a
// CPU allows for near ties (device_step_fixture.h) or has nothing to round (exact_weights.h).
#pragma once

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/host_memory.h"
#include "emulation/race_check.h"

namespace emulation {

inline constexpr uint32_t kWarpLanes = 32;
inline constexpr uint8_t kPoison = 0xff;  ///< NaN as BF16, FP32 and E8M0

struct Lane;
struct Block;

/// Something a lane waits for.
struct Wait {
  bool (*is_over)(const Wait&) = nullptr;  ///< nullptr: can run
  std::string (*describe)(const Lane&, const Wait&) = nullptr;
  const void* object = nullptr;
  uint64_t value = 0;
  const char* operation = "";
};

/// An operation that a planted fault leaves out.
enum class Skip : uint8_t {
  none,
  named_barrier,
  mbarrier_wait,
  sync_warp,
  wgmma_fence,
  wgmma_commit,
  wgmma_wait,
  system_scope,  ///< of a release: it is one of the GPU's scope
  count_order,   ///< of count_to_gpu: it is relaxed
};

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};

/// What the lanes of a warp hand to each other in one collective operation.
struct Exchange {
  static constexpr uint32_t kWords = 10;
  uint32_t in[kWarpLanes][kWords];
  uint32_t out[kWarpLanes][4];
};

/// One warp's 16 rows of a product of its warp group (warp_group.h).
struct GroupProduct {
  const uint8_t* columns;
  uint32_t num_groups;            ///< of 8 columns
  const uint32_t* a[kWarpLanes];  ///< read when it is carried out
  float* c[kWarpLanes];
  uint64_t commit_idx;
  bool is_committed, is_done;

  const uint8_t* tile() const { return columns - reinterpret_cast<uintptr_t>(columns) % 1024; }
  size_t num_bytes() const { return size_t{1024} * num_groups; }
  bool overlaps(const uint8_t* begin, size_t size) const {
    return begin < tile() + num_bytes() && tile() < begin + size;
  }
};

/// Accumulators of products on their way; the lanes' own hold poison.
struct HeldAccumulators {
  float* c[kWarpLanes];
  std::vector<float> value;  ///< of lane 0, lane 1, …
};

struct Warp {
  std::unique_ptr<Lane> lanes[kWarpLanes];
  uint32_t num_live = kWarpLanes;
  // The collective at hand. Two exchanges: a fast lane may begin the next one while a slow lane has
  // not read the results of this one.
  Exchange exchange[2];
  uint64_t num_collectives = 0;
  uint32_t num_arrived = 0;
  const char* operation = "";
  // Products of the warp group that are not complete, or that nobody has waited for.
  std::vector<GroupProduct> products;
  std::vector<HeldAccumulators> held;
  uint64_t num_products = 0, num_commits = 0;
  bool is_fenced = false;

  HeldAccumulators& held_of(const GroupProduct& product) {
    return *std::find_if(held.begin(), held.end(),
                         [&](const HeldAccumulators& h) { return h.c[0] == product.c[0]; });
  }
  /// Takes the accumulators away, unless an earlier product has them.
  void hold(const GroupProduct& product) {
    for (const HeldAccumulators& h : held)
      if (h.c[0] == product.c[0]) return;
    HeldAccumulators taken{};
    const size_t size = 4 * product.num_groups;
    for (uint32_t i = 0; i < kWarpLanes; ++i) {
      taken.c[i] = product.c[i];
      taken.value.insert(taken.value.end(), product.c[i], product.c[i] + size);
      std::memset(product.c[i], kPoison, size * sizeof(float));
    }
    held.push_back(std::move(taken));
  }
  /// Gives back those that no product needs. @return whether they still held poison
  bool give_back() {
    bool is_untouched = true;
    std::erase_if(held, [&](const HeldAccumulators& h) {
      for (const GroupProduct& product : products)
        if (product.c[0] == h.c[0]) return false;
      const size_t size = h.value.size() / kWarpLanes;
      for (uint32_t i = 0; i < kWarpLanes; ++i) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(h.c[i]);
        is_untouched &= std::all_of(bytes, bytes + size * sizeof(float),
                                    [](uint8_t byte) { return byte == kPoison; });
        std::memcpy(h.c[i], h.value.data() + i * size, size * sizeof(float));
      }
      return true;
    });
    return is_untouched;
  }
};

struct Lane {
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Index3 thread_idx;
  uint32_t lane_idx = 0, warp_idx = 0;
  bool is_done = false, is_spinning = false;
  Wait wait;
  // The last load_acquire, to notice a spin loop.
  const void* acquired = nullptr;
  uint32_t acquired_value = 0;
  uint32_t num_skippable = 0;  ///< operations of the kind that the launch leaves out one of
};

struct NamedBarrier {
  uint32_t num_expected = 0, num_arrived = 0;
  uint64_t generation = 0;
};

/// Memory as the async proxy sees it: what threads write shows up there at a fence.proxy.async.
struct ProxyView {
  std::span<uint8_t> memory;
  std::vector<uint8_t> seen;

  explicit ProxyView(std::span<uint8_t> bytes) : memory(bytes), seen(bytes.begin(), bytes.end()) {}
  void publish() { std::copy(memory.begin(), memory.end(), seen.begin()); }
};

struct Block {
  Index3 block_idx;
  std::vector<std::unique_ptr<Warp>> warps;
  uint32_t num_live_lanes = 0;
  NamedBarrier barriers[16];
  std::unique_ptr<uint8_t, decltype(&std::free)> shared{nullptr, &std::free};
  size_t shared_bytes = 0;
  std::unique_ptr<ProxyView> shared_view;
  uint64_t num_publications = 0;  ///< fences that have brought it up to date
  /// Columns and their number of all products of each warp group, in order.
  std::vector<std::vector<std::pair<const uint8_t*, uint32_t>>> group_products;
  std::vector<const void*> unfenced_mbarriers;  ///< initialised, no fence_mbarrier_init since
};

/// A bulk copy on its way.
struct BulkCopy {
  Block* block;
  uint8_t* destination;
  const uint8_t* source;
  uint32_t num_bytes;
  uint64_t* mbarrier;
  uint32_t delay_rounds;
};

struct LaunchOptions {
  uint32_t num_blocks = 1;
  uint32_t num_threads = 32;  ///< multiple of 32
  size_t shared_bytes = 0;
  uint64_t seed = 0;                   ///< 0: in order and prompt; else random order and delays
  uint32_t max_resident = UINT32_MAX;  ///< blocks that fit at the same time
  uint32_t max_copy_delay = 8;         ///< rounds of the scheduler, in random order
  /// Global memory that the kernel writes with ordinary stores and also reads with bulk copies.
  std::vector<std::span<uint8_t>> handed_over;
  /// Host memory that the kernel writes. What it writes elsewhere the host should not read before the end.
  std::vector<std::span<uint8_t>> host_memory;
  /// mma_m16n8k16 adds as Hopper does, and exp2_approx is off by as much as PTX allows.
  bool cuts_sums = false;
  /// A planted fault: every lane leaves out its operation `skip_ordinal` (from 0) of this kind.
  Skip skip = Skip::none;
  uint32_t skip_ordinal = 0;
  /// Another one: whether a warp leaves out its waits on an mbarrier.
  std::function<bool(uint32_t warp_idx, const uint64_t* mbarrier)> skip_wait;
  /// Called for every bulk copy when it is issued.
  std::function<void(const BulkCopy&)> on_copy;
  /// The name of the object at an offset of shared memory, for reports.
  std::function<std::string(size_t)> name_shared;
};

struct Statistics {
  uint64_t num_switches = 0, num_rounds = 0, num_copies = 0, num_products = 0;
};

struct Machine {
  LaunchOptions options;
  std::function<void()> kernel;
  std::vector<std::unique_ptr<Block>> blocks;  ///< resident
  std::vector<BulkCopy> copies;
  std::vector<ProxyView> handed_over;
  HostMemory host_memory;
  Lane* lane = nullptr;  ///< running
  std::string error;     ///< the first one; empty: none
  uint64_t progress = 0;
  uint32_t next_block = 0;  ///< to be started
  uint32_t num_idle = 0;    ///< rounds in a row in which nothing changed
  std::mt19937_64 random;
  Statistics statistics;
  uint64_t held_ns = 0;  ///< for which nothing ran

  bool is_random() const { return options.seed != 0; }
  uint64_t draw(uint64_t below) { return random() % below; }
};

inline Machine* machine = nullptr;  ///< that of the launch at hand
EMULATION_UNCHECKED inline Lane& this_lane() { return *machine->lane; }

/// Whether the lane leaves out its waits on this mbarrier.
EMULATION_UNCHECKED inline bool skips_wait(const uint64_t* mbarrier) {
  return machine->options.skip_wait && machine->options.skip_wait(this_lane().warp_idx, mbarrier);
}

/// Whether the lane leaves out the operation it has come to.
EMULATION_UNCHECKED inline bool is_skipped(Skip skip) {
  return machine->options.skip == skip &&
         this_lane().num_skippable++ == machine->options.skip_ordinal;
}

inline std::string name_of(const Lane& lane) {
  return "block " + std::to_string(lane.block->block_idx.x) + " warp " +
         std::to_string(lane.warp_idx) + " lane " + std::to_string(lane.lane_idx);
}

/// "shared+64 (ring.full[0])", or a plain address.
inline std::string name_of(const Block& block, const void* address) {
  const auto* byte = static_cast<const uint8_t*>(address);
  const uint8_t* begin = block.shared.get();
  if (byte < begin || byte >= begin + block.shared_bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%p", address);
    return text;
  }
  const auto offset = static_cast<size_t>(byte - begin);
  std::string name = "shared+" + std::to_string(offset);
  if (machine->options.name_shared) name += " (" + machine->options.name_shared(offset) + ")";
  return name;
}

/// Records the first error and ends the launch: the calling lane never runs again.
[[noreturn]] inline void fail(const std::string& what) {
  const Unchecked unchecked;
  if (machine->error.empty()) machine->error = name_of(this_lane()) + ": " + what;
  for (;;) Fiber::suspend();
}

/// Suspends the lane until `wait.is_over`.
inline void wait_for(const Wait& wait) {
  const Unchecked unchecked;
  if (wait.is_over(wait)) return;
  this_lane().wait = wait;
  Fiber::suspend();
}

/// Lets everybody else run first: a loop that polls memory.
inline void spin(const char* operation) {
  const Unchecked unchecked;
  this_lane().is_spinning = true;
  this_lane().wait.operation = operation;
  Fiber::suspend();
}

/// All lanes of the warp meet in the same operation; each hands in `num_words` words. The last to
/// come runs `combine`. Orders no memory accesses. @return the exchange, valid until this lane's
/// next collective
inline Exchange& meet(const char* operation, const uint32_t* words, uint32_t num_words,
                      void (*combine)(Exchange&) = nullptr) {
  const Unchecked unchecked;
  Lane& lane = this_lane();
  Warp& warp = *lane.warp;
  if (warp.num_arrived != 0 && warp.operation != operation && std::strcmp(warp.operation, operation) != 0)
    fail(std::string("lanes of one warp diverge: ") + operation + " meets " + warp.operation);
  warp.operation = operation;
  const uint64_t number = warp.num_collectives;
  Exchange& exchange = warp.exchange[number % 2];
  for (uint32_t i = 0; i < num_words; ++i) exchange.in[lane.lane_idx][i] = words[i];
  if (++warp.num_arrived < kWarpLanes) {
    wait_for({[](const Wait& w) {
                return static_cast<const Warp*>(w.object)->num_collectives != w.value;
              },
              [](const Lane& l, const Wait& w) {
                return std::string(w.operation) + ": " + std::to_string(l.warp->num_arrived) +
                       " of 32 lanes have come";
              },
              &warp, number, operation});
    return exchange;
  }
  if (combine) combine(exchange);
  warp.num_arrived = 0;
  ++warp.num_collectives;
  ++machine->progress;
  return exchange;
}

}  // namespace emulation

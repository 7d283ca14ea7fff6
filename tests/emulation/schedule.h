// Runs a kernel: starts blocks, picks lanes, carries out copies, and reports deadlocks.
#pragma once

#include <map>
#include <tuple>
#include <type_traits>

#include "emulation/async_copy.h"
#include "emulation/machine.h"

namespace emulation {

inline bool can_run(const Lane& lane) {
  return !lane.is_done && !lane.is_spinning && (!lane.wait.is_over || lane.wait.is_over(lane.wait));
}

/// Not a frame of ThreadSanitizer's: a fiber begins here many times and never returns.
EMULATION_UNCHECKED inline void run_lane_to_end() {
  acquire_from(&machine->blocks);
  machine->kernel();
  release_to(&machine->blocks);
  {
    const Unchecked unchecked;
    Lane& lane = this_lane();
    lane.is_done = true;
    --lane.warp->num_live;
    --lane.block->num_live_lanes;
    ++machine->progress;
  }
  for (;;) Fiber::suspend();
}

/// Lanes outlive their launch, so that their stacks need not be mapped again.
inline std::vector<std::unique_ptr<Lane>>& idle_lanes() {
  static std::vector<std::unique_ptr<Lane>> lanes;
  return lanes;
}

inline void start_block(uint32_t block_idx) {
  auto block = std::make_unique<Block>();
  const LaunchOptions& options = machine->options;
  block->block_idx.x = block_idx;
  block->num_live_lanes = options.num_threads;
  block->shared_bytes = options.shared_bytes;
  const size_t bytes = std::max<size_t>(options.shared_bytes, 1024);
  block->shared.reset(
      static_cast<uint8_t*>(std::aligned_alloc(1024, (bytes + 1023) / 1024 * 1024)));
  std::memset(block->shared.get(), kPoison, bytes);
  block->shared_view =
      std::make_unique<ProxyView>(std::span(block->shared.get(), options.shared_bytes));
  for (uint32_t thread = 0; thread < options.num_threads; ++thread) {
    if (thread % kWarpLanes == 0) block->warps.push_back(std::make_unique<Warp>());
    auto& idle = idle_lanes();
    if (idle.empty()) idle.push_back(std::make_unique<Lane>());
    std::unique_ptr<Lane> lane = std::move(idle.back());
    idle.pop_back();
    lane->block = block.get();
    lane->warp = block->warps.back().get();
    lane->thread_idx = {thread, 0, 0};
    lane->lane_idx = thread % kWarpLanes;
    lane->warp_idx = thread / kWarpLanes;
    lane->is_done = lane->is_spinning = false;
    lane->wait = {};
    lane->acquired = nullptr;
    lane->num_skippable = 0;
    lane->fiber.start(&run_lane_to_end, thread + 7 * block_idx);
    lane->warp->lanes[lane->lane_idx] = std::move(lane);
  }
  machine->blocks.push_back(std::move(block));
  release_to(&machine->blocks);
}

inline void retire(Block& block) {
  for (auto& warp : block.warps)
    for (auto& lane : warp->lanes)
      if (!lane->is_done) lane->fiber.abandon(&machine->blocks);
  acquire_from(&machine->blocks);
  for (auto& warp : block.warps)
    for (auto& lane : warp->lanes) idle_lanes().push_back(std::move(lane));
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block.shared.get(), block.shared_bytes);
#endif
}

/// What a block may not leave behind. @return an error text, or ""
inline std::string check_exit(const Block& block) {
  const std::string name = "block " + std::to_string(block.block_idx.x);
  for (const BulkCopy& copy : machine->copies)
    if (copy.block == &block) return name + " ends while a bulk copy into it is on its way";
  for (const auto& warp : block.warps)
    if (!warp->products.empty()) return name + " ends with products of a warp group on their way";
  for (const NamedBarrier& barrier : block.barriers)
    if (barrier.num_arrived != 0)
      return name + " ends with " + std::to_string(barrier.num_arrived) + " of " +
             std::to_string(barrier.num_expected) + " threads at named barrier " +
             std::to_string(&barrier - block.barriers);
  return "";
}

/// Who waits for what, lanes with the same wait in one line.
inline std::string describe_waits(const char* title) {
  std::map<std::tuple<uint32_t, uint32_t, std::string>, uint32_t> waits;
  for (const auto& block : machine->blocks)
    for (const auto& warp : block->warps)
      for (const auto& lane : warp->lanes) {
        if (lane->is_done) continue;
        const Wait& wait = lane->wait;
        const std::string what = wait.describe ? wait.describe(*lane, wait) : wait.operation;
        ++waits[{block->block_idx.x, lane->warp_idx, what}];
      }
  std::string text = title;
  for (const auto& [key, num_lanes] : waits)
    text += "\n  block " + std::to_string(std::get<0>(key)) + " warp " +
            std::to_string(std::get<1>(key)) + ": " + std::get<2>(key) + ", " +
            std::to_string(num_lanes) + " lanes";
  return text;
}

/// Runs the lanes of one warp, each until it waits, a few times over. @return whether any ran
inline bool run_warp(Warp& warp) {
  const bool is_random = machine->is_random();
  const uint64_t num_passes = is_random ? 1 + machine->draw(16) : 64;
  const uint64_t first = is_random ? machine->draw(kWarpLanes) : 0;
  bool has_run = false;
  for (uint64_t pass = 0; pass < num_passes; ++pass) {
    bool ran_now = false;
    for (uint64_t i = 0; i < kWarpLanes; ++i) {
      Lane& lane = *warp.lanes[(first + i) % kWarpLanes];
      if (!can_run(lane)) continue;
      lane.wait = {};
      machine->lane = &lane;
      ++machine->statistics.num_switches;
      lane.fiber.resume();
      machine->lane = nullptr;
      ran_now = has_run = true;
      if (!machine->error.empty()) return true;
    }
    if (!ran_now) break;
  }
  for (auto& lane : warp.lanes) lane->is_spinning = false;
  return has_run;
}

inline void retire_finished_blocks() {
  auto& blocks = machine->blocks;
  for (size_t i = 0; i < blocks.size() && machine->error.empty();) {
    if (blocks[i]->num_live_lanes != 0) {
      ++i;
      continue;
    }
    machine->error = check_exit(*blocks[i]);
    retire(*blocks[i]);
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
    ++machine->progress;
  }
}

/// Until the launch is over, or for so many more rounds. @return whether it is over
inline bool run_grid(uint64_t num_rounds) {
  constexpr uint32_t kMaxIdleRounds = 2500;  // rounds in which lanes ran, but nothing changed
  uint32_t &next_block = machine->next_block, &num_idle = machine->num_idle;
  while (machine->error.empty() &&
         (next_block < machine->options.num_blocks || !machine->blocks.empty())) {
    if (num_rounds-- == 0) return false;
    while (next_block < machine->options.num_blocks &&
           machine->blocks.size() < machine->options.max_resident)
      start_block(next_block++);
    std::vector<Warp*> warps;
    for (auto& block : machine->blocks)
      for (auto& warp : block->warps) warps.push_back(warp.get());
    if (machine->is_random()) std::shuffle(warps.begin(), warps.end(), machine->random);
    const uint64_t progress = machine->progress;
    bool has_run = false, was_held = false;
    for (Warp* warp : warps) {
      if (warp->num_live == 0) continue;
      if (machine->is_random() && machine->draw(4) == 0) {
        was_held = true;  // a slow warp: not in this round
        continue;
      }
      has_run |= run_warp(*warp);
      if (!machine->error.empty()) return true;
    }
    run_copies();
    if (machine->error.empty()) retire_finished_blocks();
    ++machine->statistics.num_rounds;
    if (machine->progress != progress || !machine->copies.empty())
      num_idle = 0;
    else if (!has_run && !was_held)
      machine->error = describe_waits("deadlock: every thread waits");
    else if (++num_idle > kMaxIdleRounds)
      machine->error = describe_waits("livelock: threads poll and nothing changes");
  }
  return true;
}

struct LaunchResult {
  std::string error;  ///< empty: the kernel ran to its end
  Statistics statistics;
};

/// Lanes that are suspended read the pointer when they go on: no race, no order.
EMULATION_UNCHECKED inline void make_current(Machine* current) { machine = current; }

/// A kernel on an emulated GPU, which runs when it is told to. The same options give the same run.
class Launch {
 public:
  Launch(const LaunchOptions& options, std::function<void()> kernel) {
    machine_.options = options;
    machine_.random.seed(options.seed);
    for (const std::span<uint8_t>& memory : options.handed_over)
      machine_.handed_over.emplace_back(memory);
    machine_.host_memory = HostMemory(options.host_memory, options.seed);
    machine_.kernel = std::move(kernel);
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  ~Launch() {
    make_current(&machine_);
    for (auto& block : machine_.blocks) retire(*block);
    make_current(nullptr);
  }

  /// For so many rounds of the scheduler at most. @return whether the kernel is over
  bool advance(uint64_t num_rounds) {
    make_current(&machine_);
    hand_memory([&] { machine_.host_memory.enter_device(); });
    const bool is_over = run_grid(num_rounds);
    hand_memory([&] { is_over ? machine_.host_memory.end() : machine_.host_memory.leave_device(); });
    make_current(nullptr);
    return is_over;
  }
  /// Stands still for so long, as under a debugger.
  void hold(uint64_t time_ns) { machine_.held_ns += time_ns; }
  LaunchResult result() const { return {machine_.error, machine_.statistics}; }

 private:
  template <typename Hand>
  static void hand_memory(const Hand& hand) {
    const Unchecked unchecked;
    hand();
  }

  Machine machine_;
};

/// Runs `kernel` to its end.
template <typename... Params>
LaunchResult launch(const LaunchOptions& options, void (*kernel)(Params...),
                    const std::type_identity_t<Params>&... arguments) {
  Launch whole(options, [&] { kernel(arguments...); });
  whole.advance(~uint64_t{0});
  return whole.result();
}

}  // namespace emulation

// mbarriers and bulk copies: what the async proxy does, and when.
//
// A copy is carried out some rounds after it was issued. Until then its destination holds poison,
// so a reader that does not wait sees NaN (under AddressSanitizer: stops). Caught as errors: an
// unfenced hand-over from ordinary stores, overlapping copies in flight, ordinary writes into the
// destination of a copy in flight, too many arrivals, an mbarrier that nobody has initialised.
#pragma once

#include "emulation/machine.h"

namespace emulation {

/// The state of an mbarrier, kept in its own 64-bit word in shared memory.
struct MBarrierState {
  static constexpr uint64_t kMagic = 5;
  uint64_t phase = 0;         // bit 63
  uint64_t num_arrivals = 0;  // bits 46..59
  uint64_t num_pending = 0;   // bits 32..45
  int32_t num_bytes = 0;      // bits 0..31, may be negative for a moment

  static bool is_valid(uint64_t word) { return (word >> 60 & 7) == kMagic; }
  static MBarrierState unpack(uint64_t word) {
    return {word >> 63, word >> 46 & 0x3fff, word >> 32 & 0x3fff, static_cast<int32_t>(word)};
  }
  uint64_t pack() const {
    return phase << 63 | kMagic << 60 | num_arrivals << 46 | num_pending << 32 |
           static_cast<uint32_t>(num_bytes);
  }
};

/// Adds arrivals and bytes. @return an error text, or ""
inline std::string update_mbarrier(const Block& block, uint64_t* barrier, uint32_t num_arrivals,
                                   int32_t num_bytes) {
  release_to(barrier);
  const Unchecked unchecked;
  if (!MBarrierState::is_valid(*barrier))
    return "mbarrier " + name_of(block, barrier) + " is not initialised, or was overwritten";
  MBarrierState state = MBarrierState::unpack(*barrier);
  if (num_arrivals > state.num_pending)
    return "mbarrier " + name_of(block, barrier) + ": more than " +
           std::to_string(state.num_arrivals) + " arrivals in one phase";
  state.num_pending -= num_arrivals;
  state.num_bytes += num_bytes;
  if (state.num_pending == 0 && state.num_bytes == 0) {
    state.phase ^= 1;
    state.num_pending = state.num_arrivals;
  }
  *barrier = state.pack();
  ++machine->progress;
  return "";
}

inline std::string describe_mbarrier(const Lane& lane, const Wait& wait) {
  const auto state = MBarrierState::unpack(*static_cast<const uint64_t*>(wait.object));
  return std::string(wait.operation) + " " + name_of(*lane.block, wait.object) + " parity " +
         std::to_string(wait.value) + " (now in a phase of parity " + std::to_string(state.phase) +
         ", " + std::to_string(state.num_pending) + " of " + std::to_string(state.num_arrivals) +
         " arrivals and " + std::to_string(state.num_bytes) + " bytes missing)";
}

/// Whether the async proxy sees what threads have written to [begin, begin + num_bytes).
inline bool is_published(const ProxyView& view, const uint8_t* begin, uint32_t num_bytes) {
  const uint8_t* end = begin + num_bytes;
  const uint8_t* first = std::max<const uint8_t*>(begin, view.memory.data());
  const uint8_t* last = std::min<const uint8_t*>(end, view.memory.data() + view.memory.size());
  if (first >= last) return true;
  return !std::memcmp(first, view.seen.data() + (first - view.memory.data()),
                      static_cast<size_t>(last - first));
}

inline void copy_to_view(ProxyView& view, const uint8_t* begin, uint32_t num_bytes) {
  std::memcpy(view.seen.data() + (begin - view.memory.data()), begin, num_bytes);
}

/// Forbids or allows threads to touch the destination of a copy (AddressSanitizer only).
inline void set_forbidden([[maybe_unused]] const BulkCopy& copy,
                          [[maybe_unused]] bool is_forbidden) {
#if defined(__SANITIZE_ADDRESS__)
  if (is_forbidden)
    __asan_poison_memory_region(copy.destination, copy.num_bytes);
  else
    __asan_unpoison_memory_region(copy.destination, copy.num_bytes);
#endif
}

/// fence.proxy.async: the async proxy sees all that threads have written so far. The lanes of a warp
/// come to the fence together: the first that goes on copies for all that have come.
inline void publish_writes(Block& block) {
  const Unchecked unchecked;
  const uint64_t number = block.num_publications;
  this_lane().wait.operation = "fence.proxy.async";
  Fiber::suspend();
  if (block.num_publications != number) return;
  ++block.num_publications;
  for (const BulkCopy& copy : machine->copies) set_forbidden(copy, false);
  block.shared_view->publish();
  for (ProxyView& view : machine->handed_over) view.publish();
  for (const BulkCopy& copy : machine->copies) set_forbidden(copy, true);
}

inline void check_copy(const BulkCopy& copy) {
  const Unchecked unchecked;
  Block& block = *copy.block;
  const uint8_t* shared_end = block.shared.get() + block.shared_bytes;
  if ((reinterpret_cast<uintptr_t>(copy.destination) | reinterpret_cast<uintptr_t>(copy.source) |
       copy.num_bytes) %
              16 !=
          0 ||
      copy.num_bytes == 0)
    fail("bulk copy: addresses and bytes must be multiples of 16 and not 0");
  if (copy.destination < block.shared.get() || copy.destination + copy.num_bytes > shared_end)
    fail("bulk copy: the destination is not in this block's shared memory");
  if (!MBarrierState::is_valid(*copy.mbarrier))
    fail("bulk copy: mbarrier " + name_of(block, copy.mbarrier) + " is not initialised");
  for (const void* barrier : block.unfenced_mbarriers)
    if (barrier == copy.mbarrier)
      fail("bulk copy: no fence_mbarrier_init since the init of " + name_of(block, barrier));
  for (const BulkCopy& other : machine->copies)
    if (copy.destination < other.destination + other.num_bytes &&
        other.destination < copy.destination + copy.num_bytes)
      fail("bulk copy into " + name_of(block, copy.destination) +
           ", where another copy is still on its way");
  for (const auto& warp : block.warps)
    for (const GroupProduct& product : warp->products)
      if (product.overlaps(copy.destination, copy.num_bytes))
        fail("bulk copy into " + name_of(block, copy.destination) +
             ", which a product of a warp group still reads");
  bool is_fenced = is_published(*block.shared_view, copy.destination, copy.num_bytes);
  for (const ProxyView& view : machine->handed_over)
    is_fenced &= is_published(view, copy.source, copy.num_bytes);
  if (!is_fenced)
    fail("bulk copy of bytes that threads have written since the last fence.proxy.async, into " +
         name_of(block, copy.destination));
}

inline void issue_copy(const BulkCopy& copy) {
  check_copy(copy);
  std::memset(copy.destination, kPoison, copy.num_bytes);
  release_to(copy.destination);
  const Unchecked unchecked;
  if (machine->options.on_copy) machine->options.on_copy(copy);
  Block& block = *copy.block;
  copy_to_view(*block.shared_view, copy.destination, copy.num_bytes);
  set_forbidden(copy, true);
  machine->copies.push_back(copy);
  ++machine->progress;
  ++machine->statistics.num_copies;
}

/// @return an error text, or ""
inline std::string finish_copy(const BulkCopy& copy) {
  set_forbidden(copy, false);
  {
    const Unchecked unchecked;
    for (uint32_t i = 0; i < copy.num_bytes; ++i)
      if (copy.destination[i] != kPoison)
        return "threads wrote to " + name_of(*copy.block, copy.destination + i) +
               " while a bulk copy was on its way there";
  }
  copy_as_thread(copy.destination, copy.source, copy.num_bytes, copy.mbarrier);
  const Unchecked unchecked;
  copy_to_view(*copy.block->shared_view, copy.destination, copy.num_bytes);
  return update_mbarrier(*copy.block, copy.mbarrier, 0, -static_cast<int32_t>(copy.num_bytes));
}

/// One round of the copy engine: in order and at once, or in random order after random delays.
inline void run_copies() {
  std::vector<BulkCopy>& copies = machine->copies;
  if (machine->is_random()) std::shuffle(copies.begin(), copies.end(), machine->random);
  for (size_t i = 0; i < copies.size() && machine->error.empty();) {
    if (copies[i].delay_rounds != 0) {
      --copies[i++].delay_rounds;
      ++machine->progress;
      continue;
    }
    const BulkCopy copy = copies[i];
    copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
    machine->error = finish_copy(copy);
  }
}

}  // namespace emulation

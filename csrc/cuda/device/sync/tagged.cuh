// The tag edge: the data itself says that it is there; for small activations (a few KB per reader).
// One trip to L2 instead of three (data, counter, data).
//
// Contract.
// - A word is 8 bytes: 32 bits of payload and the epoch that wrote them, stored and loaded as one
//   aligned 64-bit access, which is never torn. So neither side needs an order: relaxed accesses of
//   GPU scope, no fence, no barrier. The edge orders nothing else: whoever has read a tagged word
//   may not conclude that other results of its producer are there.
// - The reader waits for its own epoch exactly. Where memory begins as zeros, tags begin at 1
//   (TaskSlot::tag); where the host has written the first value, at that value's tag (the relay of
//   edges: 0). An older tag means not yet. A newer one means that the word was overwritten while a
//   reader was pending: the wait ends with a report, not with a wrong value.
// - So that this cannot happen, a value has two rows, used by even and odd epochs: it takes a
//   producer that is two epochs ahead of a pending reader, and that is all that users must exclude.
//   Plans exclude more, for the sake of counters: nobody is even one ahead (EpochOrder::check_gate),
//   so there the second row is never what saves a word.
// - All words of a row are written in every epoch: then no tag is 2^32 epochs old.
// - Generic proxy on both sides. Never ld.global.nc, never a bulk copy: a copy may tear a word.
#pragma once

#include "cuda/device/sync/watchdog.cuh"
#include "cuda/persistent_params.h"

namespace mimo_rt::cuda {

/// Row of `num_words` that epoch `epoch` uses of the two rows at `rows`.
template <typename Word>
__device__ __forceinline__ Word* tagged_row(Word* rows, uint32_t num_words, uint32_t epoch) {
  return rows + uint64_t{epoch % 2} * num_words;
}

__device__ __forceinline__ void publish_tagged(TaggedWord* word, uint32_t payload,
                                               uint32_t epoch) {
  ptx::store_relaxed_gpu(word, uint64_t{epoch} << 32 | payload);
}

/// Any thread for its own words. False: leave the kernel.
__device__ __forceinline__ bool wait_for_tagged(const Watchdog& watchdog, const TaggedWord* word,
                                                uint32_t epoch, const WaitSite& site,
                                                uint32_t& payload) {
  return wait_until(
      watchdog, site, epoch,
      [&] {
        const uint64_t both = ptx::load_relaxed_gpu(word);
        payload = static_cast<uint32_t>(both);
        return static_cast<uint32_t>(both >> 32);
      },
      [&](uint32_t tag) { return tag == epoch; });
}

/// Words that a lane asks for together: one trip to L2. With the first ones 288 for a warp; the route
/// of 8 tokens with 8 experts each has 258.
inline constexpr uint32_t kWordsPerTrip = 8;

/// Words of the payloads that `receive_tagged` writes: in the last trip every word of every lane has a place of its own.
constexpr uint32_t num_received_words(uint32_t num_words) {
  constexpr uint32_t kTrip = 32 * kWordsPerTrip;
  return num_words <= 32 ? num_words : 32 + (num_words - 32 + kTrip - 1) / kTrip * kTrip;
}

/// A lane's words of a trip, from `first` on, 32 apart; beyond the row its last word, again. Without a comparison for each:
/// predicates are few.
__device__ __forceinline__ bool receive_trip(const Watchdog& watchdog, const TaggedWord* row, uint32_t num_words,
                                             uint32_t first, uint32_t epoch, const WaitSite& site,
                                             uint32_t* payloads) {
  const auto place = [&](uint32_t i) {
    const uint32_t at = first + 32 * i;
    return at < num_words ? at : num_words - 1;
  };
  const auto poll = [&] {
    TaggedWord words[kWordsPerTrip];
#pragma unroll
    for (uint32_t i = 0; i < kWordsPerTrip; ++i) words[i] = ptx::load_relaxed_gpu(row + place(i));
    uint32_t seen = epoch;
#pragma unroll
    for (uint32_t i = 0; i < kWordsPerTrip; ++i) {
      payloads[first + 32 * i] = static_cast<uint32_t>(words[i]);
      if (const auto tag = static_cast<uint32_t>(words[i] >> 32); tag != epoch) seen = tag;
    }
    return seen;
  };
  return wait_until(watchdog, site, epoch, poll, [&](uint32_t tag) { return tag == epoch; });
}

/// All lanes of a warp: brings the row of `epoch` to `payloads`, [num_received_words]. Of each lane the first
/// word is polled alone: the others mostly come with it. @return of the lane's words: false: leave
__device__ __forceinline__ bool receive_tagged(const Watchdog& watchdog, const TaggedWord* row,
                                               uint32_t num_words, uint32_t epoch,
                                               const WaitSite& site, uint32_t* payloads) {
  uint32_t first = threadIdx.x % 32;
  bool is_met = first >= num_words || wait_for_tagged(watchdog, row + first, epoch, site, payloads[first]);
  for (first += 32; is_met && first < num_words; first += 32 * kWordsPerTrip)
    is_met = receive_trip(watchdog, row, num_words, first, epoch, site, payloads);
  return is_met;
}

}  // namespace mimo_rt::cuda

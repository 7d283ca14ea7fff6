// The tag edge: the data itself says that it is there; for small activations (a few KB per reader).
// One trip to L2 instead of three (data, counter, data).
//
// Contract.
// - A word is 8 bytes: 32 bits of payload and the epoch that wrote them, stored and loaded as one
//   aligned 64-bit access, which is never torn. So neither side needs an order: relaxed accesses of
//   GPU scope, no fence, no barrier. The edge orders nothing else: whoever has read a tagged word
//   may not conclude that other results of its producer are there.
// - The reader waits for its own epoch exactly. Memory begins as zeros and epochs begin at 1. An
//   older tag means not yet. A newer one means that the word was overwritten while a reader was
//   pending: the wait ends with a report, not with a wrong value.
// - So that this cannot happen, a value has two rows, used by even and odd epochs, and the plan
//   proves that no producer is two epochs ahead of a reader.
// - Generic proxy on both sides. Never ld.global.nc, never a bulk copy: a copy may tear a word.
#pragma once

#include "cuda/device/sync/watchdog.cuh"

namespace mimo_rt::cuda {

using TaggedWord = uint64_t;  ///< low half: payload; high half: epoch

/// Row of `num_words` that epoch `epoch` uses of the two rows at `rows`.
template <typename Word>
__device__ __forceinline__ Word* tagged_row(Word* rows, uint32_t num_words, uint32_t epoch) {
  return rows + uint64_t{epoch % 2} * num_words;
}

__device__ __forceinline__ void publish_tagged(TaggedWord* word, uint32_t payload,
                                               uint32_t epoch) {
  ptx::store_relaxed_gpu(word, uint64_t{epoch} << 32 | payload);
}

/// Any thread for its own words. False: leave the kernel. `site.edge_idx` should name the row.
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

}  // namespace mimo_rt::cuda

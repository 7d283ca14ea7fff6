// Drafts without a draft model: what NgramLookup::propose (engine/ngram_lookup.h) proposes, found by one block in the text
// itself. From its end backwards, a chunk at a time, the block looks for the last token and counts: a thread that knows how
// many occurrences come behind its own knows which of them the host would look at, and only these are compared with the end
// of the text. Not on the host's way, from occurrence to occurrence: each step of it would be a trip to memory.
//
// A text of 8192 tokens is two chunks, and usually in L2.
#pragma once

#include "cuda/device/tasks/select_tokens.cuh"
#include "cuda/round_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kIdsPerThread = kTextAlignment;  ///< of a chunk
inline constexpr uint32_t kChunkIds = kComputeWarps * 32 * kIdsPerThread;

/// A place of the text whose tokens are those at its end.
struct TextMatch {
  uint32_t length = 0;  ///< 0: there is none
  uint32_t begin = 0;   ///< of what follows it
};

/// Tokens that end at `place`, and as many at the end of the text, the last of which are equal.
__device__ inline uint32_t match_length(const int32_t* text, uint32_t size, uint32_t place) {
  const uint32_t most = place + 1 < kMaxLookupMatch ? place + 1 : kMaxLookupMatch;
  uint32_t length = 1;
  while (length < most && text[place - length] == text[size - 1 - length]) ++length;
  return length;
}

/// This thread's places of a chunk that ends at `chunk_end`; the first thread has the last ones.
struct TextPlaces {
  uint32_t first = 0;
  uint32_t hits = 0;  ///< bit i: the last token is at place first + i, before the end of the text
  uint32_t num_hits = 0;

  __device__ TextPlaces(const int32_t* text, uint32_t size, uint32_t chunk_end) {
    const uint32_t offset = (threadIdx.x + 1) * kIdsPerThread;
    if (offset > chunk_end) return;  // before the beginning
    first = chunk_end - offset;
    const auto last = static_cast<uint32_t>(text[size - 1]);
#pragma unroll
    for (uint32_t i = 0; i < kIdsPerThread; i += 4) {
      const ptx::Words4 ids = *reinterpret_cast<const ptx::Words4*>(text + first + i);
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        const uint32_t is_hit = ids.word[j] == last && first + i + j + 1 < size;
        hits |= is_hit << (i + j);
        num_hits += is_hit;
      }
    }
  }
};

/// All compute threads: the longest match, of those the latest, in all of them.
__device__ inline TextMatch best_of_block(DrawShared& shared, const TextMatch& own) {
  const uint32_t length = ptx::reduce_max(own.length);
  const uint32_t begin = ptx::reduce_max(own.length == length ? own.begin : 0);
  if (threadIdx.x % 32 == 0) {
    shared.counts[threadIdx.x / 32] = length;
    shared.near_places[threadIdx.x / 32] = begin;
  }
  compute_barrier();
  TextMatch best;
  for (uint32_t warp = 0; warp < kComputeWarps; ++warp) {
    const TextMatch other{shared.counts[warp], shared.near_places[warp]};
    if (other.length > best.length || (other.length == best.length && other.begin > best.begin)) best = other;
  }
  return best;
}

/// Compares this thread's places with the end of the text, the last ones first, of all occurrences those before the
/// kMaxLookupVisits-th. `num_behind`: occurrences behind these places.
__device__ inline void compare_places(const int32_t* text, uint32_t size, const TextPlaces& places, uint32_t num_behind,
                                      TextMatch& best) {
  uint32_t visit = num_behind;
#pragma unroll 1
  for (uint32_t i = kIdsPerThread; i-- != 0 && visit < kMaxLookupVisits;) {
    if ((places.hits >> i & 1) == 0) continue;
    ++visit;
    const uint32_t length = match_length(text, size, places.first + i);
    if (length > best.length) best = {length, places.first + i + 1};
  }
}

/// All compute threads. `text`: [size], at least 1, aligned to 16 bytes, which can be read up to a multiple of kTextAlignment.
__device__ inline TextMatch find_match(DrawShared& shared, const int32_t* text, uint32_t size) {
  constexpr uint64_t kIsLongest = uint64_t{1} << 32;
  TextMatch best;
  uint32_t num_visits = 0;
  uint32_t chunk_end = (size + kTextAlignment - 1) / kTextAlignment * kTextAlignment;
  while (chunk_end != 0 && num_visits < kMaxLookupVisits) {
    const TextPlaces places(text, size, chunk_end);
    const BlockSum sum(shared, places.num_hits + (best.length == kMaxLookupMatch ? kIsLongest : 0));
    if (sum.total >= kIsLongest) break;  // in the chunk before
    compare_places(text, size, places, num_visits + static_cast<uint32_t>(sum.up_to) - places.num_hits, best);
    num_visits += static_cast<uint32_t>(sum.total);
    chunk_end -= chunk_end < kChunkIds ? chunk_end : kChunkIds;
  }
  return best_of_block(shared, best);
}

/// All compute threads: the drafts of the next round, in round.block behind the anchor, and the length of their match.
/// Where there is no match, round.match is 0 and the block as it was.
__device__ inline void look_up_drafts(DrawShared& shared, RoundTables& round) {
  const uint32_t size = round.token_position;
  const TextMatch match = find_match(shared, round.text, size);
  if (threadIdx.x == 0) round.match = match.length;
  if (match.length == 0 || threadIdx.x + 1 >= round.block_size) return;
  // Where the text ends, what was found repeats itself.
  round.block[threadIdx.x + 1] = round.text[match.begin + threadIdx.x % (size - match.begin)];
}

}  // namespace mimo_rt::cuda

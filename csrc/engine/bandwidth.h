// Measures how fast all workers together can read memory: the yardstick of decode speed.
#pragma once

#include "engine/timed_passes.h"

#include <cstdint>
#include <span>
#include <vector>

namespace mimo_rt {

class Weights;

struct ReadRange {
  const uint8_t* data;  ///< 64-byte aligned
  uint64_t bytes;
};

/// The packed matrices of a model.
std::vector<ReadRange> weight_ranges(const Weights& weights);

/// What thread `part` of `parts` reads of the concatenated ranges; pieces begin at multiples of 64
/// bytes of the concatenation.
std::vector<ReadRange> share_of(std::span<const ReadRange> ranges, uint32_t part, uint32_t parts);

/// GB/s (1e9 bytes) of the best of several passes over `ranges` (the first GiB of them), split
/// evenly over the threads. Less than 256 MiB, which caches could hold, is replaced by a buffer.
/// @throws Error{out_of_memory}
double measure_read_gbs(std::span<const ReadRange> ranges, const PassOptions& options);

}  // namespace mimo_rt

// What launches of expert kernels share: what errors say of them, and their blocks.
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/launch_options.h"

namespace mimo_rt::cuda {

template <typename Params>
KernelCall describe(const char* where, const Params& params) {
  return {where, concat("num_tokens ", params.num_tokens, ", max_slots ", params.max_slots,
                        ", hidden_size ", params.hidden_size, ", width ", params.width)};
}

/// Blocks of the kernels that only move data: several per multiprocessor hide its latencies.
inline uint32_t small_blocks(const LaunchOptions& options, uint32_t num_units) {
  constexpr uint32_t kMost = 1024;
  return options.num_blocks ? options.num_blocks : std::clamp(num_units, 1u, kMost);
}

}  // namespace mimo_rt::cuda

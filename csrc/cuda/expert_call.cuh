// What errors say of a launch of an expert kernel.
#pragma once

#include "cuda/launch.cuh"

namespace mimo_rt::cuda {

template <typename Params>
KernelCall describe(const char* where, const Params& params) {
  return {where, concat("num_tokens ", params.num_tokens, ", max_slots ", params.max_slots,
                        ", hidden_size ", params.hidden_size, ", width ", params.width)};
}

}  // namespace mimo_rt::cuda

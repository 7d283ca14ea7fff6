// How a kernel is launched on its own.
#pragma once

#include <cstdint>

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace mimo_rt::cuda {

struct LaunchOptions {
  CUstream_st* stream = nullptr;
  uint32_t num_blocks = 0;  ///< 0: one per multiprocessor; any number gives the same bits
};

}  // namespace mimo_rt::cuda

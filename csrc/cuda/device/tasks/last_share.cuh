// Which of the blocks that share some work finishes it: the one that is done last, so that none waits for another.
#pragma once

#include "cuda/device/tasks/weight_stream.cuh"

namespace mimo_rt::cuda {

/// All compute threads, after a barrier behind what this block has done: whether the `num_others` other blocks that count
/// at `arrived` have done theirs. `is_last`: a word in shared memory. Then `arrived` is 0 again.
__device__ __forceinline__ bool comes_last(uint32_t& is_last, uint32_t* arrived, uint32_t num_others) {
  if (num_others == 0) return true;
  if (threadIdx.x == 0) is_last = ptx::count_to_gpu(arrived, num_others) == num_others;
  compute_barrier();
  return is_last != 0;
}

}  // namespace mimo_rt::cuda

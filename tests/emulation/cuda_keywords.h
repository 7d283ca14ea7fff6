// The words of CUDA C++ that kernels use, for a host compiler.
#pragma once

#include "emulation/machine.h"

#define __global__ static  // the library may hold the real kernel of that name
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::emulation::this_lane().thread_idx)
#define blockIdx (::emulation::this_lane().block->block_idx)
#define gridDim (::emulation::Index3{::emulation::machine->options.num_blocks, 1, 1})

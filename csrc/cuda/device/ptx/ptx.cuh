// The hardware operations of the CUDA kernels: one function per instruction, nothing else.
//
// Kernels name no instruction and no intrinsic directly: only these functions. With
// MIMO_RT_HOST_EMULATION the same names come from tests/emulation, so that the kernels' own source
// runs under g++ in the ordinary tests. A function added here is added there in the same change.
//
// Shared memory is passed as a generic pointer; the wrappers turn it into a shared-space address.
#pragma once

#if defined(MIMO_RT_HOST_EMULATION)
#include "emulation/ptx.h"
#else
#include "cuda/device/ptx/copy.cuh"
#include "cuda/device/ptx/group.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/memory.cuh"
#include "cuda/device/ptx/system.cuh"
#include "cuda/device/ptx/wgmma.cuh"
#endif

// Marks functions that CUDA kernels call too. Nothing for a host compiler.
#pragma once

#if defined(__CUDACC__)
#define MIMO_RT_HOST_DEVICE __host__ __device__
#else
#define MIMO_RT_HOST_DEVICE
#endif

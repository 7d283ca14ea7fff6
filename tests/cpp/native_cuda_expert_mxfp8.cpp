// test_cuda_expert_mxfp8.cpp on a real GPU: the same tests through the host API of the kernels, the
// products CUTLASS's (MIMO_RT_CUTLASS=ON, sm_100; elsewhere the kernels must say what is missing).
#define MIMO_RT_TEST_ON_GPU
#include "test_cuda_expert_mxfp8.cpp"

// test_cuda_joint_draft.cpp on a real GPU: the same tests through the executor. Built when CUDA is; not among
// the ordinary tests, which need no GPU.
#define MIMO_RT_TEST_ON_GPU
#include "test_cuda_joint_draft.cpp"

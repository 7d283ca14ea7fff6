// The AVX-512 sources once more, for processors with BF16, VBMI and VNNI.
#define MIMO_RT_AVX512_BF16
#include "avx512_emulated.cpp"

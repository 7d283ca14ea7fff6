// The namespace of this folder; see ../shared/entries.h.
//
// The folder is compiled twice (see CMakeLists.txt): as avx512, which needs F, BW, VL and DQ, and
// with MIMO_RT_AVX512_BF16 as avx512_bf16, which needs BF16, VBMI and VNNI too.
#pragma once

#if defined(MIMO_RT_AVX512_BF16)
#define MIMO_RT_ISA avx512_bf16
#else
#define MIMO_RT_ISA avx512
#endif

#include "../shared/entries.h"

// The namespace of this folder; see ../shared/entries.h.
#pragma once

#define MIMO_RT_ISA avx2

#include "../shared/entries.h"

namespace mimo_rt::cpu::avx2 {

// For mxfp4; the other formats share prepare.cpp.
uint64_t prepared_bytes_mxfp4(uint32_t num_tokens, uint32_t k);
void prepare_mxfp4(const PrepareArgs& args);

}  // namespace mimo_rt::cpu::avx2

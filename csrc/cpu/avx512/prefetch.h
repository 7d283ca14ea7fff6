// Lines of the weights' stream, fetched before the load of each step.
#pragma once

#include <stdint.h>

#include "entries.h"

namespace mimo_rt::cpu::MIMO_RT_ISA {
namespace {

/// Into L1, the line that lies four tiles of mxfp4 behind codes + offset. The assembler pretends to
/// change `codes`, which keeps the loads behind it: gcc gathers prefetches, and in a burst they cost
/// mxfp4 at one token two thirds of its speed. Nor may they leave the order of addresses: fetching
/// the scales of a tile with its first line costs 40 %.
MIMO_RT_INLINE void prefetch_near(const uint8_t*& codes, uint32_t offset) {
  asm volatile("prefetcht0 %1" : "+r"(codes) : "m"(codes[offset + 4 * 1088]));
}

}  // namespace
}  // namespace mimo_rt::cpu::MIMO_RT_ISA

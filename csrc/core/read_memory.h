// Reads memory as fast as one thread can: the yardstick of everything that is bound by bytes.
#pragma once

#include <cstdint>

namespace mimo_rt {

/// Reads every byte of a 64-byte aligned range; the result keeps the reads alive.
uint64_t read_memory(const uint8_t* data, uint64_t bytes);

}  // namespace mimo_rt

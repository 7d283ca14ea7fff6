// The numbers of csrc/weights/packed.h for the ISA translation units.
//
// packed.h holds inline functions: a debug build could emit them as weak symbols from an AVX object
// and the linker could let them replace the baseline ones. Everything here has internal linkage;
// dispatch.cpp asserts that both files agree.
#pragma once

#include <stdint.h>

namespace mimo_rt::cpu::layout {

enum : uint32_t { kRows = 16, kTileK = 128, kBlockK = 32, kBlocksPerTile = 4, kAlignment = 64 };

enum Format : int { kMxfp4, kFp8, kBf16, kF32, kNumFormats };

/// Bytes of codes of one block of 16 rows x 32 k, without scales.
static constexpr uint32_t block_bytes(int format) {
  return format == kMxfp4 ? 256 : format == kFp8 ? 512 : format == kBf16 ? 1024 : 2048;
}

/// Bytes of a tile of `num_blocks` (1..4) blocks of 32 k.
static constexpr uint32_t tile_bytes(int format, uint32_t num_blocks) {
  const uint32_t scales = format == kMxfp4
                              ? (num_blocks * kRows + kAlignment - 1) / kAlignment * kAlignment
                          : format == kFp8 ? kRows * 4
                                           : 0;
  return num_blocks * block_bytes(format) + scales;
}

/// Bytes of a row group over all of k (a multiple of 32).
static constexpr uint64_t row_group_bytes(int format, uint32_t k) {
  const uint32_t rest = k % kTileK / kBlockK;
  return uint64_t{k / kTileK} * tile_bytes(format, kBlocksPerTile) +
         (rest ? tile_bytes(format, rest) : 0);
}

}  // namespace mimo_rt::cpu::layout

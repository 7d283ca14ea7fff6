// Packed FP8 and BF16 matrices of the CUDA kernels: what lies where. Constants for g++ and nvcc.
//
// A matrix has rows (a multiple of 16) x k (a multiple of 32) weights. As with MXFP4 experts
// (cuda_tiles.h) rows come in groups of 16, a tile is 16 rows x some k and contiguous, the tiles of
// a row group follow each other along k, and any run of tiles is one bulk copy. A tile is read by
// one warp, lane = 4 * g + q, whose bytes are exactly its part of the A operands (rows g, g + 8).
// k is taken in the same permuted order: in every 64 k, fragment f of lane q holds k = 16q + 4f ..
// 16q + 4f + 3, the first two where mma.m16n8k16 says 2q, the others where it says 2q + 8.
//
//   fp8_e4m3  16 x 128, 2112 bytes: one column of scale blocks
//     2048 B codes   chunk c = 0..3 of 512 B: lane's 16 bytes are 16 codes of row g + 8 * (c % 2)
//                    at k = 64 * (c / 2) + 16q; word f of them: fragment f
//       64 B scales  FP32 of rows 0..15
//   bf16      16 x 64, 2048 bytes
//                    chunk c = 0..3 of 512 B: lane's 16 bytes are 8 values of row g + 8 * (c / 2)
//                    at k = 16q + 8 * (c % 2), in order: fragments 2 * (c % 2) and the next
//
// The four codes of an FP8 word, k ascending, lie in its bytes 1, 3, 0, 2: each half of the word
// holds one of the first two in its upper byte and one of the others in its lower, so that pairs of
// neighbours become BF16 (sign to bit 15, exponent and mantissa to bits 10..4) with shifts and
// masks of the whole word.
//
// Padding k holds zeros; its scales are those of the block, or 1 where there is none. Padding rows
// hold zeros with scale 1.
#pragma once

#include <cstdint>

namespace mimo_rt {

inline constexpr uint32_t kCudaFp8TileK = 128;
inline constexpr uint32_t kCudaFp8CodeBytes = 16 * kCudaFp8TileK;
inline constexpr uint32_t kCudaFp8TileBytes = kCudaFp8CodeBytes + 16 * 4;
inline constexpr uint32_t kCudaBf16TileK = 64;
inline constexpr uint32_t kCudaBf16TileBytes = 16 * kCudaBf16TileK * 2;

inline constexpr uint32_t kCudaChunkBytes = 512;  ///< 16 bytes of every lane

}  // namespace mimo_rt

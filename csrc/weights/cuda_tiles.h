// Packed MXFP4 expert matrices of the CUDA kernels: what lies where. Constants for g++ and nvcc.
//
// A matrix has rows (a multiple of 16) x k (a multiple of 32) weights. Rows come in groups of 16,
// k in tiles of 64; a *tile* is 16 rows x 64 k, 544 contiguous bytes; the tiles of a row group
// follow each other along k, then the next row group begins, then the next expert. Any run of tiles
// is one bulk copy; a stage of the ring holds any number of tiles.
//
// A tile is read by one warp, lane = 4 * g + q with g = 0..7 and q = 0..3. What a lane reads is
// exactly what it feeds to mma.m16n8k16 as its part of the A operand (rows g and g + 8), so nothing
// moves between lanes:
//
//   512 B codes   lane's 16 bytes: two words of row g, then two words of row g + 8;
//                 word j: k = 16q + 8j .. 16q + 8j + 7
//    32 B scales  byte 4g + 2b: E8M0 of row g, block b (k = 32b .. 32b + 31);
//                 byte 4g + 2b + 1: the same of row g + 8
//
// The four fragments of a tile take their k in a permuted order, the same for weights and
// activations: where the instruction says k = 2q + {0, 1}, fragment f takes 16q + 4f + {0, 1};
// where it says 2q + 8 + {0, 1}, 16q + 4f + 2 + {0, 1}. So a lane's activations are 16 neighbours
// too.
//
// A word holds four pairs of neighbouring k: the even k in the lower half, the odd k in the upper.
// The bits of a half are placed so that three of its four E2M1 codes become BF16 by a shift and a
// mask (sign to bit 15, the others to bits 8..6: exponent and mantissa of value * 2^-126), and the
// fourth by three of them. Pair 0..3, sign s, exponent e, mantissa m:
//
//   bit   15  14  13  12  11  10   9   8   7   6   5   4   3   2   1   0
//         s0  s3  m3  s1  e3  e3  s2  e0  e0  m0  e1  e1  m1  e2  e2  m2
//
// Padding k (half of the last tile when k is an odd multiple of 32) holds zero codes and scale 127.
#pragma once

#include <cstdint>

namespace mimo_rt {

inline constexpr uint32_t kCudaTileRows = 16;
inline constexpr uint32_t kCudaTileK = 64;
inline constexpr uint32_t kCudaTileCodeBytes = 512;
inline constexpr uint32_t kCudaTileBytes = kCudaTileCodeBytes + 32;

/// Kernels multiply weights by 2^-24 and sums by 2^24, so that BF16 holds every factor: block
/// scales up to 2^25 fit. With scales below 2^-108 the error is at most 2^-110 per weight.
inline constexpr uint32_t kCudaScaleShift = 24;
inline constexpr uint32_t kCudaMaxE8m0 = 127 + kCudaScaleShift + 1;

/// Rows of gate and up share a group: 8 of gate, then 8 of up, so that one group yields 8 columns
/// of act.
inline constexpr uint32_t kCudaGateUpRows = 8;

}  // namespace mimo_rt

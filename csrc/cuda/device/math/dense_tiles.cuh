// FP8 and BF16 tiles as the A operands of products. The bit layout is that of
// weights/cuda_dense_tiles.h.
#pragma once

#include "cuda/device/math/fragments.cuh"
#include "weights/cuda_dense_tiles.h"

namespace mimo_rt::cuda {

/// The four E4M3 codes of a word as BF16 pairs, exactly. Sign, exponent and mantissa at their
/// places are value * 2^-120, subnormals included (the biases are 7 and 127); the product undoes
/// that.
__device__ __forceinline__ void unpack_e4m3(uint32_t word, uint32_t (&pairs)[2]) {
  constexpr uint32_t kSign = 0x80008000u, kMagnitude = 0x07f007f0u;
  constexpr uint32_t kFactor = 0x7b807b80u;  // 2^120
  pairs[0] = ptx::mul_bf16x2((word & kSign) | (word >> 4 & kMagnitude), kFactor);
  pairs[1] = ptx::mul_bf16x2((word << 8 & kSign) | (word << 4 & kMagnitude), kFactor);
}

struct Fp8Tiles {
  static constexpr uint32_t kTileBytes = kCudaFp8TileBytes, kTileK = kCudaFp8TileK, kStageTiles = 2;
  static constexpr uint32_t kParts = 2;  ///< of 64 k
  static constexpr bool kIsScaled = true;

  __device__ static WeightFragments load(const uint8_t* tile, uint32_t part, uint32_t lane_idx) {
    WeightFragments fragments;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {  // rows g, rows g + 8
      const uint8_t* chunk = tile + (2 * part + half) * kCudaChunkBytes;
      const auto codes = *reinterpret_cast<const ptx::Words4*>(chunk + lane_idx * 16);
#pragma unroll
      for (uint32_t f = 0; f < 4; ++f) {
        uint32_t pairs[2];
        unpack_e4m3(codes.word[f], pairs);
        fragments.a[f][half] = pairs[0];
        fragments.a[f][2 + half] = pairs[1];
      }
    }
    return fragments;
  }
  /// Of row `row` of the tile.
  __device__ static float scale(const uint8_t* tile, uint32_t row) {
    return reinterpret_cast<const float*>(tile + kCudaFp8CodeBytes)[row];
  }
};

struct Bf16Tiles {
  static constexpr uint32_t kTileBytes = kCudaBf16TileBytes, kTileK = kCudaBf16TileK,
                            kStageTiles = 2;
  static constexpr uint32_t kParts = 1;
  static constexpr bool kIsScaled = false;

  __device__ static WeightFragments load(const uint8_t* tile, uint32_t /*part*/,
                                         uint32_t lane_idx) {
    WeightFragments fragments;
#pragma unroll
    for (uint32_t chunk = 0; chunk < 4; ++chunk) {
      const auto values =
          *reinterpret_cast<const ptx::Words4*>(tile + chunk * kCudaChunkBytes + lane_idx * 16);
      const uint32_t half = chunk / 2, first = chunk % 2 * 2;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        fragments.a[first + i / 2][i % 2 * 2 + half] = values.word[i];
    }
    return fragments;
  }
  __device__ static float scale(const uint8_t* /*tile*/, uint32_t /*row*/) { return 1.0f; }
};

}  // namespace mimo_rt::cuda

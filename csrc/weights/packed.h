// Packed weight matrices: the one layout that the generic, AVX2 and AVX-512 kernels and the ref executor read.
//
// A packed matrix has `rows` x `k` weights, rows padded to a multiple of 16, k to a multiple of 32. Rows come in groups
// of 16, k in blocks of 128; a *tile* is 16 rows x 128 k and is contiguous; the tiles of a row group follow each other
// along k, then the next row group begins: one linear stream per worker. The last tile of a row group may be short: it
// holds nb = 1..4 blocks of 32 k. Every tile starts at a multiple of 64 bytes.
//
//   mxfp4     nb*4 vectors of 64 B of codes, then nb*16 B of E8M0 scales [block][row], padded to 64 B.
//             vector j covers k = 8j..8j+7: dword lane = row; byte b: low nibble k = 8j+b, high nibble k = 8j+4+b.
//             full tile 1088 B.
//   fp8_e4m3  nb*8 vectors of 64 B, then 16 f32 scales [row] (one 128-k scale block: tiles never straddle one).
//             vector j covers k = 4j..4j+3: dword lane = row; byte b: k = 4j+b. full tile 2112 B.
//   bf16      nb*16 vectors of 64 B. vector j covers k = 2j, 2j+1: dword lane = row; low half k = 2j. full tile 4096 B.
//   f32       nb*32 vectors of 64 B. vector j covers k = j: dword lane = row. full tile 8192 B.
//
// Padding rows and padding k hold zero codes (E8M0 padding 127, FP8 scale padding 1).
#pragma once

#include <mimo_rt/dtype.h>

#include <cstdint>

namespace mimo_rt {

/// Counts the revisions of everything that decides packed bytes: this layout, the arena's order (layout.cpp), row
/// orders, conversions. Files of other revisions are not used; test_packed_cache.cpp fails when bytes change alone.
inline constexpr uint32_t kPackedLayoutVersion = 1;

inline constexpr uint32_t kTileRows = 16;
inline constexpr uint32_t kTileK = 128;
inline constexpr uint32_t kBlockK = 32;
inline constexpr uint32_t kTileAlignment = 64;

enum class PackedFormat : uint8_t { mxfp4, fp8_e4m3, bf16, f32 };

constexpr uint32_t round_up(uint32_t value, uint32_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Bytes of a tile that holds `num_blocks` (1..4) blocks of 32 k.
constexpr uint32_t tile_bytes(PackedFormat format, uint32_t num_blocks) {
  switch (format) {
    case PackedFormat::mxfp4: return round_up(num_blocks * (256 + 16), kTileAlignment);
    case PackedFormat::fp8_e4m3: return num_blocks * 512 + 64;
    case PackedFormat::bf16: return num_blocks * 1024;
    case PackedFormat::f32: return num_blocks * 2048;
  }
  return 0;
}

/// Bytes of one group of 16 rows over all of k (already a multiple of 32).
constexpr uint64_t row_group_bytes(PackedFormat format, uint32_t k) {
  const uint32_t full = k / kTileK, rest = k % kTileK / kBlockK;
  return uint64_t{full} * tile_bytes(format, 4) + (rest ? tile_bytes(format, rest) : 0);
}

/// A packed matrix somewhere in a weight arena. Never owns.
struct PackedMatrix {
  const uint8_t* data = nullptr;  ///< 64-byte aligned
  PackedFormat format = PackedFormat::bf16;
  uint32_t rows = 0;              ///< multiple of 16
  uint32_t k = 0;                 ///< multiple of 32, the padded length

  uint32_t num_row_groups() const { return rows / kTileRows; }
  uint64_t bytes() const { return num_row_groups() * row_group_bytes(format, k); }
  const uint8_t* row_group(uint32_t group) const { return data + group * row_group_bytes(format, k); }
};

}  // namespace mimo_rt

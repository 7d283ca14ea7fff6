// The row order of the packed qkv matrix: which head and which elements the 16 rows of a tile are.
//
// All q heads come first, then k heads, then v heads. The rotating part of a q or k head is packed so that both halves of
// every RoPE pair lie in one tile: rows [0, n) are elements j..j+n-1, rows [8, 8 + n) are j+half..j+half+n-1, n <= 8. So
// a worker may own any range of tiles and still apply RoPE in the epilogue. Every head starts at a new tile; unused rows
// are zero.
#pragma once

#include <mimo_rt/config.h>

#include <cstdint>
#include <vector>

namespace mimo_rt {

struct QkvTile {
  enum class Part : uint8_t { q, k, v } part;
  bool rotary;          ///< rows pair up (i, i + 8)
  uint16_t head_idx;
  uint16_t dim_begin;   ///< first element (of the first half when rotary)
  uint16_t num_dims;    ///< valid rows; when rotary: valid pairs, 1..8
};

/// The size of `qkv_tiles(layer)`, without making it.
uint64_t num_qkv_tiles(const LayerConfig& layer);

/// [num_tiles] in packed order.
std::vector<QkvTile> qkv_tiles(const LayerConfig& layer);

/// Source element of packed row `row` (0..15) of a tile inside its head, or -1 for padding.
int32_t qkv_tile_element(const QkvTile& tile, const LayerConfig& layer, uint32_t row);

}  // namespace mimo_rt

#include "weights/qkv_tiles.h"

#include "weights/packed.h"

#include <algorithm>

namespace mimo_rt {
namespace {

// Rows 0..7 of a rotary tile hold first halves, rows 8..15 their partners.
constexpr uint32_t kPairsPerTile = kTileRows / 2;

/// Appends the tiles of one head: rotating pairs of [0, rotary_dim), then the rest in order.
void append_head(std::vector<QkvTile>& tiles, QkvTile::Part part, uint32_t head_idx,
                 uint32_t head_dim, uint32_t rotary_dim) {
  const auto push = [&](bool rotary, uint32_t dim_begin, uint32_t num_dims) {
    QkvTile tile{};
    tile.part = part;
    tile.rotary = rotary;
    tile.head_idx = static_cast<uint16_t>(head_idx);
    tile.dim_begin = static_cast<uint16_t>(dim_begin);
    tile.num_dims = static_cast<uint16_t>(num_dims);
    tiles.push_back(tile);
  };
  const uint32_t half = rotary_dim / 2;
  for (uint32_t dim = 0; dim < half; dim += kPairsPerTile)
    push(true, dim, std::min(kPairsPerTile, half - dim));
  for (uint32_t dim = rotary_dim; dim < head_dim; dim += kTileRows)
    push(false, dim, std::min(kTileRows, head_dim - dim));
}

uint64_t num_head_tiles(uint32_t head_dim, uint32_t rotary_dim) {
  return (rotary_dim / 2 + kPairsPerTile - 1) / kPairsPerTile +
         (std::max(head_dim, rotary_dim) - rotary_dim + kTileRows - 1) / kTileRows;
}

}  // namespace

uint64_t num_qkv_tiles(const LayerConfig& layer) {
  const uint64_t num_qk_heads = uint64_t{layer.num_q_heads} + layer.num_kv_heads;
  return num_qk_heads * num_head_tiles(layer.qk_head_dim, layer.rotary_dim) +
         layer.num_kv_heads * num_head_tiles(layer.v_head_dim, 0);
}

std::vector<QkvTile> qkv_tiles(const LayerConfig& layer) {
  std::vector<QkvTile> tiles;
  tiles.reserve(num_qkv_tiles(layer));
  for (uint32_t head = 0; head < layer.num_q_heads; ++head)
    append_head(tiles, QkvTile::Part::q, head, layer.qk_head_dim, layer.rotary_dim);
  for (uint32_t head = 0; head < layer.num_kv_heads; ++head)
    append_head(tiles, QkvTile::Part::k, head, layer.qk_head_dim, layer.rotary_dim);
  for (uint32_t head = 0; head < layer.num_kv_heads; ++head)
    append_head(tiles, QkvTile::Part::v, head, layer.v_head_dim, 0);
  return tiles;
}

int32_t qkv_tile_element(const QkvTile& tile, const LayerConfig& layer, uint32_t row) {
  if (!tile.rotary) return row < tile.num_dims ? static_cast<int32_t>(tile.dim_begin + row) : -1;
  const uint32_t pair = row % kPairsPerTile;
  if (row >= kTileRows || pair >= tile.num_dims) return -1;
  const uint32_t partner_offset = row < kPairsPerTile ? 0 : layer.rotary_dim / 2;
  return static_cast<int32_t>(tile.dim_begin + pair + partner_offset);
}

}  // namespace mimo_rt

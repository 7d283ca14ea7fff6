// Products of a warp group (wgmma): what the async proxy does with registers and shared memory, and
// when.
//
// A product is carried out when its group is committed or only when it is waited for, in random
// order of the warps. Until then its accumulators hold NaN, and what it reads, registers too, is
// read as it is at that moment. Caught as errors: products without a fence before them, of bytes
// that a copy still brings or that threads have written without a proxy fence, copies into what a
// product still reads, accumulators that a thread has written, warps of a group that differ.
//
// Not seen: a fence that is there but comes before the registers are written.
#pragma once

#include "core/numeric.h"
#include "emulation/async_copy.h"

namespace emulation {

inline constexpr uint32_t kGroupWarps = 4;

template <typename T>
T* pointer_of(const uint32_t* words) {
  T* pointer;
  std::memcpy(&pointer, words, sizeof pointer);
  return pointer;
}

/// All lanes of this warp have come with a product.
inline void issue_product(Exchange& exchange) {
  Lane& lane = this_lane();
  Block& block = *lane.block;
  Warp& warp = *lane.warp;
  GroupProduct product{};
  product.columns = pointer_of<const uint8_t>(exchange.in[0]);
  product.num_groups = exchange.in[0][6];
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (std::memcmp(exchange.in[i], exchange.in[0], 8)) fail("wgmma: lanes with other columns");
    product.a[i] = pointer_of<const uint32_t>(exchange.in[i] + 2);
    product.c[i] = pointer_of<float>(exchange.in[i] + 4);
  }
  const uint32_t group_idx = lane.warp_idx / kGroupWarps;
  if ((group_idx + 1) * kGroupWarps > block.warps.size()) fail("wgmma: not a whole warp group");
  if (!warp.is_fenced) fail("wgmma: no wgmma_fence since the registers were free");
  if (product.columns < block.shared.get() ||
      product.tile() + product.num_bytes() > block.shared.get() + block.shared_bytes ||
      product.columns - product.tile() > 96 || (product.columns - product.tile()) % 32 != 0)
    fail("wgmma: columns must lie in shared memory, at 0, 32, 64 or 96 of a multiple of 1024");
  for (const BulkCopy& copy : machine->copies)
    if (product.overlaps(copy.destination, copy.num_bytes))
      fail("wgmma of " + name_of(block, product.columns) + ", which a bulk copy still brings");
  if (!is_published(*block.shared_view, product.tile(), product.num_bytes()))
    fail("wgmma of bytes that threads have written since the last fence.proxy.async, at " +
         name_of(block, product.columns));
  block.group_products.resize(block.warps.size() / kGroupWarps);
  auto& issued = block.group_products[group_idx];
  const std::pair shape{product.columns, product.num_groups};
  if (warp.num_products == issued.size()) issued.push_back(shape);
  if (issued[warp.num_products++] != shape) fail("wgmma: warps of one group differ");
  warp.hold(product);
  warp.products.push_back(product);
  ++machine->statistics.num_products;
}

/// c += a b in FP32, k ascending, as mma.m16n8k16 of the emulation.
inline void carry_out(Warp& warp, const GroupProduct& product) {
  constexpr uint32_t kMaxColumns = 128;
  static float a[16][16], b[16][kMaxColumns], c[16][kMaxColumns];
  const uint32_t num_columns = 8 * product.num_groups;
  const auto first_chunk = static_cast<uint32_t>(product.columns - product.tile()) / 16;
  for (uint32_t col = 0; col < num_columns; ++col)
    for (uint32_t k = 0; k < 16; ++k) {
      uint16_t bits;
      const uint32_t chunk = (first_chunk + k / 8) ^ col % 8;
      std::memcpy(&bits, product.tile() + col * 128 + chunk * 16 + k % 8 * 2, 2);
      b[k][col] = mimo_rt::bf16_to_f32(bits);
    }
  std::vector<float>& held = warp.held_of(product).value;
  const uint32_t size = 4 * product.num_groups;
  const auto element = [&](uint32_t row, uint32_t col) -> float& {
    const uint32_t lane = row % 8 * 4 + col % 8 / 2;
    return held[lane * size + col / 8 * 4 + row / 8 * 2 + col % 2];
  };
  for (uint32_t row = 0; row < 16; ++row) {
    for (uint32_t k = 0; k < 16; ++k) {
      const uint32_t word = product.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      a[row][k] = mimo_rt::bf16_to_f32(static_cast<uint16_t>(word >> k % 2 * 16));
    }
    for (uint32_t col = 0; col < num_columns; ++col) c[row][col] = element(row, col);
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t col = 0; col < num_columns; ++col) c[row][col] += a[row][k] * b[k][col];
    for (uint32_t col = 0; col < num_columns; ++col) element(row, col) = c[row][col];
  }
}

/// All but the last `num_left` groups.
inline void carry_out_groups(Warp& warp, uint64_t num_left) {
  for (GroupProduct& product : warp.products)
    if (product.is_committed && product.commit_idx + num_left < warp.num_commits &&
        !product.is_done) {
      carry_out(warp, product);
      product.is_done = true;
    }
}

inline void commit_products(Exchange&) {
  Warp& warp = *this_lane().warp;
  for (GroupProduct& product : warp.products)
    if (!product.is_committed) {
      product.is_committed = true;
      product.commit_idx = warp.num_commits;
    }
  ++warp.num_commits;
  if (machine->is_random() && machine->draw(2)) carry_out_groups(warp, 0);
}

inline void wait_for_products(Exchange& exchange) {
  Warp& warp = *this_lane().warp;
  const uint32_t num_left = exchange.in[0][0];
  carry_out_groups(warp, num_left);
  std::erase_if(warp.products, [&](const GroupProduct& product) {
    return product.is_done && product.commit_idx + num_left < warp.num_commits;
  });
  if (!warp.give_back()) fail("wgmma: a thread has written accumulators of a product on its way");
  warp.is_fenced = false;
}

}  // namespace emulation

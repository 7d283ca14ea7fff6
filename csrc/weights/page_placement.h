// Weights lie in the memory of the processor that reads them, on machines with several memory nodes.
//
// Linux takes a page from the node of the core that writes it first. So, before anything is packed, a thread on a core
// of the right node touches every page. What is the right node is decided for blocks of 2 MiB, the size of a huge page,
// because the first touch of a huge page brings all of it.
#pragma once

#include "weights/layout.h"

#include <cstdint>
#include <functional>
#include <vector>

namespace mimo_rt {

inline constexpr uint64_t kPlacedBlockBytes = uint64_t{2} << 20;
inline constexpr uint32_t kNoReader = ~0u;

struct PagePlacement {
  struct Core {
    int id;
    uint32_t node;
  };
  std::vector<Core> cores;  ///< of the workers; empty: nothing is placed
  /// [num_row_groups] which worker reads each row group of a matrix; kNoReader: none, or another one in every step.
  std::function<std::vector<uint32_t>(const MatrixSlot&)> readers;
};

/// [blocks of the arena] the worker that should touch each: of the node whose workers read most of its bytes; blocks
/// that nobody reads more than others take turns. Workers of a node share its blocks.
std::vector<uint32_t> choose_touchers(const WeightsLayout& layout, const PagePlacement& placement);

/// Touches all pages of a new arena, each on the core of its worker: what packing would do otherwise, but before the
/// first word of progress, at the speed of memory. Best effort: where a thread or a binding is
/// refused, pages come from wherever they are packed, which costs speed only.
void place_pages(const Arena& arena, const WeightsLayout& layout, const PagePlacement& placement);

}  // namespace mimo_rt

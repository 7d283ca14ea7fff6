// Packs all matrices of a layout from a checkpoint, in parallel.
#pragma once

#include "weights/layout.h"
#include "weights/pack.h"

#include <mimo_rt/checkpoint.h>

#include <vector>

namespace mimo_rt {

struct PackMatrices {
  const Checkpoint& checkpoint;
  const WeightsLayout& layout;
  const std::vector<PackJob>& jobs;  ///< one per matrix of the layout
  const Arena& arena;
  const Weights::Options& options;
  const char* where;                 ///< the public operation, for errors
};

/// Packs and releases the pages of the checkpoint as it goes.
/// @throws as `pack_row_group`; Error{cancelled} when the progress callback says so
void pack_matrices(const PackMatrices& work);

}  // namespace mimo_rt

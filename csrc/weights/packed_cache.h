// Arenas that outlive the process: made once, kept in files named by what they were made from.
#pragma once

#include <mimo_rt/packed_cache.h>

#include "weights/layout.h"
#include "weights/pack.h"

#include <functional>
#include <string>
#include <vector>

namespace mimo_rt {

/// How the packed bytes of one part of a model come to be: all that decides them.
struct ArenaRecipe {
  const Checkpoint& checkpoint;
  const WeightsLayout& layout;
  const std::vector<PackJob>& jobs;          ///< one per matrix of the layout
  const Weights::Options& options;
  std::string part;                          ///< "target" or "draft"
  const char* where;                         ///< the public operation, for errors
  std::function<void(const Arena&)> fill;    ///< packs everything into a new arena
};

/// The arena of `recipe`: from the cache when it has a sound one, else packed and, unless `options.cache_dir` is empty,
/// kept there. What goes wrong with the cache is reported, not thrown.
/// @throws as `recipe.fill`; Error{out_of_memory}; Error{cancelled} as the progress callback says
Arena make_arena(const ArenaRecipe& recipe, PackedCacheReport& report);

}  // namespace mimo_rt

// The checks of Plan::verify() that look at one record at a time.
#pragma once

#include <mimo_rt/plan.h>

namespace mimo_rt {

/// Ids, kinds, flags, tile ranges, waits and signals in range; counters' totals right; buffers large enough, aligned,
/// inside the arena and apart. Everything after it may index without looking. @throws Error{plan_invalid}
void check_structure(const Plan& plan);

}  // namespace mimo_rt

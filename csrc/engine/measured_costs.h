// The costs that an engine plans with.
#pragma once

#include <mimo_rt/costs.h>

#include <string>

namespace mimo_rt {

/// The table of `key`, or one without times. Costs speed, not answers: what is wrong with a file becomes `note`.
CostTable costs_for_plan(const CostKey& key, std::string& note);

}  // namespace mimo_rt

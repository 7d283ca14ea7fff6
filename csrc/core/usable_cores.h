// Processors that this process may use. The root folder is a parameter so that tests can build control groups.
#pragma once

#include <cstdint>
#include <string>

namespace mimo_rt {

/// Affinity mask, lowered by the smallest CPU quota of the control groups above this process (v2 and v1), >= 1.
/// `root` ends with '/'; "/" outside of tests. Files that are missing or unreadable set no limit.
uint32_t usable_cores(const std::string& root);

}  // namespace mimo_rt

// The memory (NUMA) nodes of processors. The root folder is a parameter so that tests can build machines.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mimo_rt {

/// [cores.size()] the node of each core, by <root>sys/devices/system/node. Empty when all are of one node, or when the
/// node of any is not known. `root` ends with '/'; "/" outside of tests.
std::vector<uint32_t> memory_nodes(std::span<const int> cores, const std::string& root = "/");

}  // namespace mimo_rt

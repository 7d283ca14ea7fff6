#include "core/memory_nodes.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>
#include <system_error>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

/// 3 of "node3"; the folder of the nodes has files of other names too.
std::optional<uint32_t> node_number(std::string_view name) {
  constexpr std::string_view kPrefix = "node";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  uint32_t number = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

}  // namespace

std::vector<uint32_t> memory_nodes(std::span<const int> cores, const std::string& root) {
  constexpr uint32_t kUnknown = ~0u;
  std::vector<uint32_t> nodes(cores.size(), kUnknown);
  std::error_code error;
  // node<N>/cpu<M> is there for every core M of node N.
  for (fs::directory_iterator at(root + "sys/devices/system/node", error), end; !error && at != end; at.increment(error)) {
    const std::optional<uint32_t> node = node_number(at->path().filename().native());
    if (!node) continue;
    std::error_code ignored;
    for (size_t i = 0; i < cores.size(); ++i)
      if (fs::exists(at->path() / ("cpu" + std::to_string(cores[i])), ignored)) nodes[i] = *node;
  }
  const bool is_known = std::ranges::find(nodes, kUnknown) == nodes.end();
  const bool is_one = std::ranges::adjacent_find(nodes, std::ranges::not_equal_to()) == nodes.end();
  if (!is_known || is_one) nodes.clear();
  return nodes;
}

}  // namespace mimo_rt

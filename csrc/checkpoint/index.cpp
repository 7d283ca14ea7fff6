#include "checkpoint/index.h"

#include "checkpoint/json_scanner.h"
#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Checkpoint.open";
constexpr size_t kMaxTensors = size_t{1} << 22;
constexpr size_t kMaxFileNameBytes = 255;
constexpr int kMaxMetadataDepth = 4;

// Check 21: the value names a file of the directory and nothing else.
void check_file_name(const std::string& name, std::string_view source) {
  const bool has_bad_byte = std::any_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '/' || c == '\\';
  });
  const bool is_plain = !name.empty() && name.size() <= kMaxFileNameBytes && !has_bad_byte &&
                        name != "." && name.find("..") == std::string::npos;
  MIMO_RT_CHECK(is_plain, bad_format, kWhere, source,
                ": weight_map: expected a plain file name, got ", printable(name));
}

using NamePair = std::pair<std::string, std::string>;  // tensor, file

std::vector<NamePair> parse_weight_map(JsonScanner& scanner, std::string_view source) {
  std::vector<NamePair> pairs;
  scanner.expect('{');
  if (scanner.accept('}')) return pairs;
  do {
    std::string tensor = scanner.string();
    scanner.expect(':');
    std::string file = scanner.string();
    if (pairs.empty() || pairs.back().second != file) check_file_name(file, source);
    MIMO_RT_CHECK(pairs.size() < kMaxTensors, bad_format, kWhere, source,
                  ": weight_map: expected at most ", kMaxTensors, " tensors");
    pairs.emplace_back(std::move(tensor), std::move(file));
  } while (scanner.accept(','));
  scanner.expect('}');
  return pairs;
}

CheckpointIndex make_index(std::vector<NamePair> pairs, std::string_view source) {
  std::sort(pairs.begin(), pairs.end());
  const auto twice = std::adjacent_find(
      pairs.begin(), pairs.end(),
      [](const NamePair& a, const NamePair& b) { return a.first == b.first; });
  MIMO_RT_CHECK(twice == pairs.end(), bad_format, kWhere, source,
                ": weight_map: expected each tensor once, got ", printable(twice->first), " twice");
  CheckpointIndex index;
  for (const NamePair& pair : pairs) index.file_names.push_back(pair.second);
  auto& files = index.file_names;
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  for (NamePair& pair : pairs) {
    const auto file = std::lower_bound(files.begin(), files.end(), pair.second) - files.begin();
    index.entries.push_back({std::move(pair.first), static_cast<uint32_t>(file)});
  }
  return index;
}

}  // namespace

CheckpointIndex parse_index(std::string_view json, std::string_view source) {
  JsonScanner scanner(json, kWhere, source);
  std::optional<std::vector<NamePair>> pairs;
  std::vector<std::string> keys;
  scanner.expect('{');
  if (!scanner.accept('}')) {
    do {
      keys.push_back(scanner.string());
      MIMO_RT_CHECK(std::find(keys.begin(), keys.end() - 1, keys.back()) == keys.end() - 1,
                    bad_format, kWhere, source, ": expected each key once, got ",
                    printable(keys.back()), " twice");
      MIMO_RT_CHECK(keys.size() <= 64, bad_format, kWhere, source, ": expected at most 64 keys");
      scanner.expect(':');
      if (keys.back() == "weight_map") {
        pairs = parse_weight_map(scanner, source);
      } else {
        scanner.skip_value(kMaxMetadataDepth);
      }
    } while (scanner.accept(','));
    scanner.expect('}');
  }
  scanner.expect_end('\0');
  MIMO_RT_CHECK(pairs && !pairs->empty(), bad_format, kWhere, source,
                ": expected a weight_map with tensors, got none");
  return make_index(std::move(*pairs), source);
}

}  // namespace mimo_rt

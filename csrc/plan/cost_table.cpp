// The file of a cost table: JSON, read as suspiciously as any other file.
#include <mimo_rt/costs.h>

#include "core/checks.h"
#include "core/text.h"
#include "weights/cache_files.h"

#include <mimo_rt/device.h>
#include <mimo_rt/packed_cache.h>
#include <mimo_rt/version.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>
#include <unistd.h>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kVersion = "mimo_rt costs 1, library " MIMO_RT_VERSION;
constexpr size_t kMaxBytes = 1 << 16;
constexpr double kMaxNs = 1e9;  // for 1024 weights: a second

constexpr std::pair<const char*, double CostTable::*> kNumbers[] = {
    {"attention_ns", &CostTable::attention_ns}, {"norm_ns", &CostTable::norm_ns},
    {"prepare_ns", &CostTable::prepare_ns},     {"edge_ns", &CostTable::edge_ns},
    {"edge_worker_ns", &CostTable::edge_worker_ns}};

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") || line.starts_with("CPU part")) return line.substr(line.find(':') + 1);
  return "unknown";
}

uint32_t workers_of(const CostKey& key) { return key.num_workers ? key.num_workers : num_usable_cores(); }

std::string processor_of(const CostKey& key) {
  const std::string name = key.processor.empty() ? processor_name() : key.processor;
  return is_valid_utf8(name) ? name : printable(name);  // JSON holds no other bytes
}

/// Two GPUs may have as many multiprocessors; a CPU is the only one of its machine.
std::string gpu_in_file_name(const CostKey& key) {
  if (key.backend != "cuda") return {};
  MIMO_RT_CHECK(!key.processor.empty() && key.num_workers != 0, invalid_argument, "cost_table_path",
                "key: expected the processor and num_workers of a GPU, got '", key.processor, "' and ", key.num_workers,
                ". cost_key(\"cuda\") fills them in.");
  std::string name = key.processor + '-';
  const auto is_plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '-'; };
  std::ranges::replace_if(name, [&](char c) { return !is_plain(c); }, '_');
  return name;
}

/// What measures a table for the key again.
std::string again(const CostKey& key) {
  return concat("Measure again: mimo-rt bench costs", key.backend == "cuda" ? " --device cuda" : "");
}

double number_of(const Json& value, const std::string& where, const char* name) {
  MIMO_RT_CHECK(value.is_number(), bad_format, "load_cost_table", where, ": ", name, ": expected a number, got ",
                value.type_name());
  return value.get<double>();
}

const Json& member(const Json& object, const char* name, const std::string& where) {
  MIMO_RT_CHECK(object.is_object() && object.contains(name), bad_format, "load_cost_table", where,
                ": expected an object with '", name, "'. Measure again: mimo-rt bench costs");
  return object.at(name);
}

CostTable parse(const Json& root, const std::string& where) {
  CostTable table;
  const Json& matrices = member(root, "matrix_ns", where);
  for (size_t f = 0; f < CostTable::kFormats.size(); ++f) {
    const char* format = CostTable::kFormats[f];
    const Json& times = member(matrices, format, where);
    MIMO_RT_CHECK(times.is_array() && times.size() == CostTable::kTokens.size(), bad_format, "load_cost_table", where,
                  ": matrix_ns of ", format, ": expected ", CostTable::kTokens.size(), " times");
    for (size_t i = 0; i < times.size(); ++i) table.matrix_ns[f][i] = number_of(times[i], where, format);
  }
  for (const auto& [name, field] : kNumbers) table.*field = number_of(member(root, name, where), where, name);
  MIMO_RT_CHECK(table.is_sound(), bad_format, "load_cost_table", where, ": expected times from 0 to ", kMaxNs,
                " ns, none of a matrix falling as tokens are added. Measure again: mimo-rt bench costs");
  return table;
}

/// Brings all of it to the disk, or throws.
void write_text(int descriptor, std::string_view text, const std::string& name) {
  const auto check = [&](bool is_good) {
    MIMO_RT_CHECK(is_good, io, "save_cost_table", name, ": cannot be written (", std::strerror(errno), ")");
  };
  while (!text.empty()) {
    const ssize_t size = write(descriptor, text.data(), text.size());
    check(size > 0 || (size < 0 && errno == EINTR));
    if (size > 0) text.remove_prefix(static_cast<size_t>(size));
  }
  check(fsync(descriptor) == 0);
}

}  // namespace

bool CostTable::is_sound() const {
  const auto is_time = [](double ns) { return ns >= 0.0 && ns <= kMaxNs; };  // false for NaN
  for (const auto& times : matrix_ns)
    if (!std::ranges::all_of(times, is_time) || !std::ranges::is_sorted(times)) return false;
  return std::ranges::all_of(kNumbers, [&](const auto& number) { return is_time(this->*number.second); });
}

fs::path cost_table_path(const CostKey& key) {
  return cache_directory() / "costs" /
         concat(key.backend, '-', gpu_in_file_name(key), key.kernel_set, key.kernel_set.empty() ? "" : "-",
                key.activations, '-', workers_of(key), ".json");
}

void save_cost_table(const CostKey& key, const CostTable& table) {
  Json root = {{"version", kVersion}, {"processor", processor_of(key)}, {"tokens", CostTable::kTokens}};
  for (size_t f = 0; f < CostTable::kFormats.size(); ++f)
    root["matrix_ns"][CostTable::kFormats[f]] = table.matrix_ns[f];
  for (const auto& [name, field] : kNumbers) root[name] = table.*field;
  const fs::path path = cost_table_path(key);
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  MIMO_RT_CHECK(!error, io, "save_cost_table", path.parent_path().string(), ": cannot be made (", error.message(), ")");
  write_cache_file(path.parent_path(), path.filename().string(), "save_cost_table",
                   [&](int descriptor) { write_text(descriptor, root.dump(1) + '\n', path.string()); });
}

std::optional<CostTable> load_cost_table(const CostKey& key) {
  const fs::path path = cost_table_path(key);
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;  // opening a pipe would wait for ever
  std::ifstream file(path, std::ios::binary);
  MIMO_RT_CHECK(file, bad_format, "load_cost_table", path.string(), ": cannot be read");
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  MIMO_RT_CHECK(!file.bad() && text.size() <= kMaxBytes, bad_format, "load_cost_table", path.string(),
                ": expected a readable file of at most ", kMaxBytes, " bytes. Measure again: mimo-rt bench costs");
  const Json root = Json::parse(text, nullptr, false);
  const std::string where = path.string();
  const Json& version = member(root, "version", where);
  const Json& processor = member(root, "processor", where);
  if (version != kVersion) return std::nullopt;
  MIMO_RT_CHECK(processor == processor_of(key), unavailable, "load_cost_table", where, ": measured on ",
                processor.is_string() ? concat("'", processor.get<std::string>(), "'") : "another processor",
                ", this is '", processor_of(key), "'. ", again(key));
  return parse(root, where);
}

}  // namespace mimo_rt

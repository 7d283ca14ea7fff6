// Loads of the small model through a packed cache, and the bytes that came out.
#pragma once

#include "checkpoint_fixture.h"
#include "draft_fixture.h"
#include "weights/draft_weights.h"
#include "weights/packed_file.h"
#include "weights/weights.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace fixture {

using State = PackedCacheReport::State;

/// What a load gave: all packed bytes, and what the cache did.
struct CachedLoad {
  std::string bytes;
  PackedCacheReport report;
};

inline Weights::Options cache_options(const std::filesystem::path& cache_dir, bool use_mmap = true) {
  Weights::Options options;
  options.num_threads = 2;
  options.cache_dir = cache_dir;
  options.use_mmap = use_mmap;
  return options;
}

inline CachedLoad load_target(const writer::TempDir& dir, const ModelConfig& config,
                              const Weights::Options& options) {
  const Weights weights = Weights::load(Checkpoint::open(dir.path()), config, options);
  // The embedding lies at the beginning of the arena.
  return {{reinterpret_cast<const char*>(weights.embed().data), weights.packed_bytes()},
          weights.cache_report()};
}

inline CachedLoad load_draft(const writer::TempDir& dir, const DraftConfig& config,
                             const Weights::Options& options) {
  const DraftWeights weights = DraftWeights::load(dir.path(), config, options);
  const uint64_t mask_bytes = uint64_t{config.hidden_size} * 2;
  return {{reinterpret_cast<const char*>(weights.fc().data), weights.packed_bytes() - mask_bytes},
          weights.cache_report()};
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// How many files have a suffix; the hash of contents may be there or not, as fast as the test was.
inline size_t num_files(const std::filesystem::path& directory, const std::string& suffix) {
  const std::vector<std::string> names = names_in(directory);
  return static_cast<size_t>(
      std::ranges::count_if(names, [&](const std::string& name) { return name.ends_with(suffix); }));
}

/// Replaces a file by one with these bytes (a mapping of the old one keeps its own).
inline void replace_file(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove_all(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// Makes the header of a packed file fit its own sum again.
inline void seal_header(std::string& bytes) {
  const size_t end = kPackedHeaderBytes - sizeof(uint64_t);
  const uint64_t sum = packed_sum(std::as_bytes(std::span(bytes).first(end)), 0);
  std::memcpy(bytes.data() + end, &sum, sizeof sum);
}

}  // namespace fixture

#include <mimo_rt/packed_cache.h>

#include <cstdlib>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

/// An environment variable, or empty.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

fs::path cache_directory() {
  const std::string home = variable("HOME");
  const std::string given = variable("MIMO_RT_CACHE");
  if (!given.empty() && (given == "~" || given.starts_with("~/"))) return home + given.substr(1);
  if (!given.empty()) return given;
  // The XDG specification says to ignore relative paths.
  const fs::path xdg = variable("XDG_CACHE_HOME");
  return (xdg.is_absolute() ? xdg : fs::path(home) / ".cache") / "mimo_rt";
}

fs::path packed_cache_directory(const std::string& packed_cache) {
  if (packed_cache == "none") return {};
  return packed_cache == "auto" ? cache_directory() / "packed" : fs::path(packed_cache);
}

}  // namespace mimo_rt

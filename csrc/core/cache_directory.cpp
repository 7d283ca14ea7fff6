#include <mimo_rt/packed_cache.h>

#include <pwd.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

/// An environment variable, or empty.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// What "~" stands for; services may have no HOME.
std::string home_directory() {
  if (std::string home = variable("HOME"); !home.empty()) return home;
  std::array<char, 16384> text;
  passwd user{};
  passwd* found = nullptr;
  ::getpwuid_r(::getuid(), &user, text.data(), text.size(), &found);
  return found ? found->pw_dir : "";
}

}  // namespace

fs::path cache_directory() {
  const std::string home = home_directory();
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

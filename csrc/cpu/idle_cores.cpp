#include "cpu/idle_cores.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <utility>

namespace mimo_rt::cpu {

IdleCores::IdleCores(const std::string& root) : file_(open((root + "proc/uptime").c_str(), O_RDONLY | O_CLOEXEC)) {
  since_last();
}

IdleCores::~IdleCores() {
  if (file_ >= 0) close(file_);
}

double IdleCores::since_last() {
  char text[96];
  const ssize_t size = file_ < 0 ? -1 : pread(file_, text, sizeof text, 0);
  if (size <= 0) return 0.0;
  const char* const end = text + size;  // "<seconds since boot> <idle seconds of all cores>"
  double up_s = 0.0, idle_s = 0.0;
  const auto up = std::from_chars(text, end, up_s);
  if (up.ec != std::errc() || up.ptr == end || *up.ptr != ' ') return 0.0;
  if (std::from_chars(up.ptr + 1, end, idle_s).ec != std::errc()) return 0.0;
  const double passed_s = up_s - std::exchange(up_s_, up_s);
  const double rested_s = idle_s - std::exchange(idle_s_, idle_s);
  return passed_s > 0.0 ? std::max(rested_s / passed_s, 0.0) : 0.0;
}

}  // namespace mimo_rt::cpu

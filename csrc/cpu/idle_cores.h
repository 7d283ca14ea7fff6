// How many cores of the machine lay idle lately, from the idle time that the kernel counts.
#pragma once

#include <cstdint>
#include <string>

namespace mimo_rt::cpu {

class IdleCores {
 public:
  /// `root` ends with '/'; "/" outside of tests.
  explicit IdleCores(const std::string& root = "/");
  ~IdleCores();
  IdleCores(const IdleCores&) = delete;
  IdleCores& operator=(const IdleCores&) = delete;

  /// Cores that were idle since the call before, on average, of all cores of the machine. 0 at first and where
  /// <root>proc/uptime cannot be read. The kernel counts in steps of 10 ms.
  double since_last();

 private:
  int file_ = -1;
  double up_s_ = 0.0, idle_s_ = 0.0;  ///< at the last call
};

}  // namespace mimo_rt::cpu

// Planted faults: a launch that leaves out one barrier, fence or wait must be seen, by the emulated GPU or in
// the results.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernel_launch.h"

namespace fixture {

/// A launch whose results are known.
struct KnownLaunch {
  emulation::LaunchOptions options;
  std::function<std::string(const emulation::LaunchOptions&)> run;  ///< @return the emulator's error
  std::function<bool()> is_right;                                   ///< of the results

  bool is_seen(emulation::Skip skip, uint32_t ordinal, uint64_t seed) const {
    emulation::LaunchOptions with_fault = options;
    with_fault.seed = seed;
    with_fault.skip = skip;
    with_fault.skip_ordinal = ordinal;
    // A copy that comes late shows a missing wait, one that comes at once a missing barrier.
    with_fault.max_copy_delay = skip == emulation::Skip::named_barrier ? 4 : 200;
    return !run(with_fault).empty() || !is_right();
  }
  /// Each of these operations is missed in one of a hundred schedules, and nothing where none is left out.
  void expect_seen(emulation::Skip skip, const std::vector<uint32_t>& ordinals) const {
    for (uint64_t seed = 1; seed <= 3; ++seed) CHECK(!is_seen(emulation::Skip::none, 0, seed));
    for (const uint32_t ordinal : ordinals) {
      uint64_t seed = 1;
      while (seed <= 100 && !is_seen(skip, ordinal, seed)) ++seed;
      CHECK(seed <= 100);
    }
  }
};

}  // namespace fixture

// How many rows of a prompt a step takes while other sessions decode: they wait for it with their next token. Alone, a
// prompt goes in as large steps as the engine has room for. Pure bookkeeping: times come from the caller.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace mimo_rt {

class PromptPace {
 public:
  /// At most `most`. Any thread may call it.
  uint32_t max_rows(uint32_t most, uint32_t num_decoding) const {
    if (num_decoding == 0) return most;
    const double ns = row_ns_;
    const auto in_time = ns > 0.0 ? static_cast<uint32_t>(std::min<double>(kPatienceNs / ns, most)) : 0u;
    return std::min(std::max(in_time / kLeast * kLeast, kLeast), most);
  }
  /// A step that took so long; by whoever holds the engine. Those of few rows say little: weights take their time.
  void add(uint32_t num_rows, double ns) {
    if (num_rows < kLeast) return;
    const double before = row_ns_, now = ns / num_rows;
    row_ns_ = before > 0.0 ? (before + now) / 2 : now;
  }

 private:
  static constexpr double kPatienceNs = 200e6;  ///< two hundred milliseconds are seen, less is hardly
  static constexpr uint32_t kLeast = 128;       ///< fewer rows share a read of the experts' weights too badly

  std::atomic<double> row_ns_ = 0.0;  ///< of late; 0: not known
};

}  // namespace mimo_rt

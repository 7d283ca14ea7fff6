// Philox-4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3" (SC 2011): a keyed bijection of 128-bit counters, so a number needs no state.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace mimo_rt {

struct PhiloxCounter {
  uint32_t word[4];
  bool operator==(const PhiloxCounter&) const = default;
};
struct PhiloxKey {
  uint32_t word[2];
};

MIMO_RT_HOST_DEVICE constexpr PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  constexpr uint32_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
  constexpr uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter.word[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0],
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
                static_cast<uint32_t>(product0)}};
    key = {{key.word[0] + kWeyl0, key.word[1] + kWeyl1}};
  }
  return counter;
}

}  // namespace mimo_rt

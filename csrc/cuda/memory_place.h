// Where memory lies, so that no kernel is given what its device does not reach. No CUDA in here.
#pragma once

#include <cstdint>

#include "core/checks.h"

namespace mimo_rt::cuda {

struct MemoryPlace {
  enum class Kind : uint8_t { host, pinned, managed, device };
  Kind kind = Kind::host;
  int device = 0;  ///< of Kind::device
};

/// Of an operand of a kernel on `device`: its own memory, or managed. Pinned memory would be read
/// over the bus.
/// @throws Error{invalid_argument} that names the operand
inline void check_place(const char* where, const char* name, const MemoryPlace& place, int device) {
  const char* host = place.kind == MemoryPlace::Kind::host ? "host memory" : "pinned host memory";
  switch (place.kind) {
    case MemoryPlace::Kind::managed: return;
    case MemoryPlace::Kind::device:
      MIMO_RT_CHECK(place.device == device, invalid_argument, where, name,
                    ": expected memory of device ", device, ", got memory of device ",
                    place.device, ". Copy it to the device that runs the kernel.");
      return;
    default:
      fail(ErrorCode::invalid_argument, where, name, ": expected memory of device ", device,
           ", got ", host, ". Copy it to the device first.");
  }
}

}  // namespace mimo_rt::cuda

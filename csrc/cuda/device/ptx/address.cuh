// From generic pointers to the addresses that shared-memory instructions take.
#pragma once

#include <cstdint>

namespace mimo_rt::ptx {

/// cvta.to.shared: `pointer` points into this block's shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace mimo_rt::ptx

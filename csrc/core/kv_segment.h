// A run of keys and values that lie one after the other in the KV cache. A plain declaration: kernels include it too.
#pragma once

#include <stdint.h>

namespace mimo_rt {

struct KvSegment {
  const uint16_t* k;   ///< [num_keys, qk_head_dim] bf16
  const uint16_t* v;   ///< [num_keys, v_head_dim] bf16
  uint32_t num_keys;   ///< >= 1
};

}  // namespace mimo_rt

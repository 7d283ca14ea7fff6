#include "core/read_memory.h"

namespace mimo_rt {
namespace {

/// `Vector`: what one load reads.
template <typename Vector>
__attribute__((always_inline)) inline uint64_t read_lines(const uint8_t* data, uint64_t bytes) {
  constexpr uint64_t kAhead = 4096;  // bytes; far enough to cover the latency of memory
  constexpr uint64_t kStep = 4 * sizeof(Vector);
  Vector sums[4] = {};
  uint64_t i = 0;
  for (; i + kStep <= bytes; i += kStep) {
    const auto* lines = reinterpret_cast<const Vector*>(data + i);
    for (uint64_t j = 0; j < kStep; j += 64) __builtin_prefetch(data + i + j + kAhead);
    for (int j = 0; j < 4; ++j) sums[j] += lines[j];
  }
  uint64_t sum = 0;
  for (; i < bytes; ++i) sum += data[i];
  const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (uint64_t j = 0; j < sizeof(Vector) / 8; ++j) sum += all[j];
  return sum;
}

using Vector16 = uint64_t __attribute__((vector_size(16), may_alias));

#if defined(MIMO_RT_X86)
using Vector32 = uint64_t __attribute__((vector_size(32), may_alias));

// One thread does not reach the bandwidth with 16-byte loads.
__attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* data, uint64_t bytes) {
  return read_lines<Vector32>(data, bytes);
}
#endif

}  // namespace

uint64_t read_memory(const uint8_t* data, uint64_t bytes) {
#if defined(MIMO_RT_X86)
  if (__builtin_cpu_supports("avx2")) return read_avx2(data, bytes);
#endif
  return read_lines<Vector16>(data, bytes);
}

}  // namespace mimo_rt

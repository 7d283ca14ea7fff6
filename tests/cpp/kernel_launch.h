// How tests run kernels: under the emulated GPU, or (MIMO_RT_TEST_ON_GPU) on a real one.
#pragma once

#if defined(MIMO_RT_TEST_ON_GPU)
#include <cuda_runtime_api.h>
#else
#define MIMO_RT_HOST_EMULATION
#include "emulation/schedule.h"
#endif

#include <string>

#include "check.h"

namespace fixture {

struct Launch {
  uint32_t num_blocks = 2;
  uint64_t seed = 0;  ///< of the emulated schedule
};

inline void expect_none(const std::string& error) {
  if (!error.empty()) check::report(__FILE__, __LINE__, error);
  CHECK(error.empty());
}

#if defined(MIMO_RT_TEST_ON_GPU)
/// Waits for all launches; none of them may have failed.
inline void finish() {
  const cudaError_t status = cudaDeviceSynchronize();
  expect_none(status == cudaSuccess ? "" : cudaGetErrorString(status));
}
#else
inline emulation::LaunchOptions options_of(const Launch& launch, uint32_t num_threads,
                                           size_t shared_bytes) {
  emulation::LaunchOptions options;
  options.num_blocks = launch.num_blocks;
  options.num_threads = num_threads;
  options.shared_bytes = shared_bytes;
  options.seed = launch.seed;
  return options;
}

template <typename Params>
void run_emulated(void (*kernel)(Params), const Params& params,
                  const emulation::LaunchOptions& options) {
  expect_none(emulation::launch(options, kernel, params).error);
}
#endif

}  // namespace fixture

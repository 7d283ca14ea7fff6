// Measures how fast all workers together can multiply and add: the roof of steps with many tokens.
#pragma once

#include <mimo_rt/engine.h>

#include "cpu/kernels.h"

#include <cstdint>

namespace mimo_rt {

struct PeakOptions {
  uint32_t num_threads = 1;
  bool pin_threads = true;  ///< see core/pin.h
  double seconds = 0.2;
};

/// The best of several passes; `kernels` have run_products. @throws Error{out_of_memory}
VectorPeak measure_vector_peak(const cpu::Kernels& kernels, const PeakOptions& options);

}  // namespace mimo_rt

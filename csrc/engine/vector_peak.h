// Measures how fast all workers together can multiply and add: the roof of steps with many tokens.
#pragma once

#include <mimo_rt/engine.h>

#include "cpu/kernels.h"
#include "engine/timed_passes.h"

namespace mimo_rt {

/// Of BF16 products, the best of several passes. @throws Error{out_of_memory}
VectorPeak measure_vector_peak(const cpu::Kernels& kernels, const PassOptions& options);

}  // namespace mimo_rt

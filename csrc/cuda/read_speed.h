// What a GPU's memory gives to a plain read.
#pragma once

#include "cuda/bench_device.h"

namespace mimo_rt::cuda {

/// The median of reads that take about `seconds` together, in GB/s (1e9 bytes).
double measure_read_gbs(BenchDevice& device, double seconds);

}  // namespace mimo_rt::cuda

// Measures a cost table on a GPU: its kernels on all multiprocessors, each launched by itself.
#pragma once

#include <functional>
#include <memory>

#include <mimo_rt/costs.h>

#include "cuda/bench_device.h"

namespace mimo_rt::kbench {

/// What the kernels are given: enough that a launch is a small part of a call. Tests take less.
struct CudaCostSizes {
  uint32_t rows = 1u << 16, k = 6144;                           ///< FP8 and BF16: 400 and 800 MB
  uint32_t num_experts = 64, expert_width = 512;                ///< MXFP4: 210 MB
  uint32_t router_experts = 512, router_k = 1u << 15;           ///< FP32: 67 MB
  uint32_t split_keys = 1024, qk_head_dim = 192, v_head_dim = 128, num_q_per_kv = 16;  ///< of a worker
  uint32_t num_hops = 4096;                                     ///< of an edge
};

using OpenDevice = std::function<std::unique_ptr<cuda::BenchDevice>()>;

/// `key`: the device's name and as many workers as it has multiprocessors. `open_device` gives the same device
/// every time. Progress as in measure_costs.
/// @throws Error{invalid_argument, unavailable, out_of_memory, device_lost, timeout}
CostTable measure_cuda_costs(const CostKey& key, const OpenDevice& open_device,
                             const CudaCostSizes& sizes, const std::function<void(double)>& progress);

}  // namespace mimo_rt::kbench

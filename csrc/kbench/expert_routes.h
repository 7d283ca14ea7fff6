// Routes of a MoE layer, for one call each: as many active experts in all of them, but others.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/bench_device.h"
#include "plan/route_table.h"

namespace mimo_rt::kbench {

class ExpertRoutes {
 public:
  /// Every token chooses `experts_per_token` of the experts at random; the next route moves all
  /// choices on by the number of active experts.
  ExpertRoutes(const KernelCase& kernel_case, uint64_t seed, cuda::BenchDevice& device);

  uint32_t size() const { return static_cast<uint32_t>(host_.size()); }
  uint32_t num_active() const { return *view(0).num_active; }
  uint32_t num_slots() const { return num_slots_; }
  uint32_t expert(uint32_t route_idx, uint32_t slot) const;
  uint32_t token(uint32_t route_idx, uint32_t slot) const {
    return view(route_idx).slot_token[slot];
  }
  float weight(uint32_t route_idx, uint32_t slot) const { return view(route_idx).slot_weight[slot]; }
  RouteTable on_device(uint32_t route_idx) const { return device_[route_idx]; }

 private:
  RouteTable view(uint32_t route_idx) const;

  uint32_t num_experts_, num_slots_;
  std::vector<std::vector<uint32_t>> host_;  // the words of each table
  std::vector<RouteTable> device_;
};

}  // namespace mimo_rt::kbench

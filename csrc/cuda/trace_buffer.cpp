#include "cuda/trace_buffer.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "cuda/device_cache.h"

namespace mimo_rt::cuda {
namespace {

/// `end_ns`: of the worker's task before.
TaskTrace task_times(const TaskStamps& stamps, uint64_t end_ns) {
  TaskTrace times{};
  times.wait_begin_ns = end_ns;
  times.begin_ns = std::max(stamps.begin_ns, end_ns);
  times.end_ns = std::max(times.begin_ns, *std::ranges::max_element(stamps.end_ns));
  times.fetch_ns = std::clamp(stamps.fetched_ns, end_ns, times.begin_ns) - end_ns;
  const uint64_t ring_ns = std::accumulate(std::begin(stamps.ring_ns), std::end(stamps.ring_ns), uint64_t{0});
  times.weights_ns = std::min(ring_ns / kComputeWarps, times.end_ns - times.begin_ns);
  return times;
}

}  // namespace

std::vector<TaskTrace> read_stamps(const Plan& plan, std::span<const TaskStamps> stamps) {
  std::vector<TaskTrace> all;
  all.reserve(stamps.size());
  uint64_t first_ns = ~uint64_t{0};
  for (uint32_t w = 0; w < plan.num_workers(); ++w) {
    uint64_t end_ns = 0;
    for (uint32_t i = 0; i < plan.tasks(w).size(); ++i) {
      const TaskStamps& own = stamps[all.size()];
      if (i == 0) first_ns = std::min(first_ns, end_ns = own.fetched_ns);
      TaskTrace times = task_times(own, end_ns);
      times.worker_idx = w;
      times.task_idx = i;
      end_ns = times.end_ns;
      all.push_back(times);
    }
  }
  for (TaskTrace& times : all) {
    times.wait_begin_ns -= first_ns;
    times.begin_ns -= first_ns;
    times.end_ns -= first_ns;
  }
  return all;
}

void TraceBuffer::open(const std::vector<Plan>& plans) {
  uint64_t num_bytes = 0;
  for (const Plan& plan : plans)
    num_bytes = std::max(num_bytes, sizeof(TaskStamps) * uint64_t{plan.num_tasks()});
  check_free(*device_, num_bytes, "time stamps of tasks", "Close other sessions and programs.");
  DeviceBuffer stamps(device_, num_bytes);
  received_ = DeviceBuffer(device_, num_bytes, DeviceBuffer::Place::pinned);
  stamps_ = std::move(stamps);
  plan_ = nullptr;
}

void TraceBuffer::close() {
  stamps_ = {};
  received_ = {};
  plan_ = nullptr;
}

TaskStamps* TraceBuffer::begin() {
  plan_ = nullptr;
  return reinterpret_cast<TaskStamps*>(stamps_.data());
}

void TraceBuffer::receive(const Plan& plan) {
  if (!is_open()) return;
  device_->receive(received_.data(), stamps_.data(), sizeof(TaskStamps) * plan.num_tasks());
  plan_ = &plan;
}

std::vector<TaskTrace> TraceBuffer::trace() const {
  if (!plan_) return {};
  const auto* stamps = reinterpret_cast<const TaskStamps*>(received_.data());
  return read_stamps(*plan_, {stamps, plan_->num_tasks()});
}

}  // namespace mimo_rt::cuda

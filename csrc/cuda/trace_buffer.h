// Time stamps that the kernel takes of its tasks, on their way to the host.
#pragma once

#include <mimo_rt/plan.h>

#include <memory>
#include <span>
#include <vector>

#include "cuda/device_buffer.h"
#include "cuda/persistent_params.h"
#include "plan/trace.h"

namespace mimo_rt::cuda {

/// What stamps say of a plan's tasks, worker after worker: a worker waits for a task from the end of
/// the one before, for the first from when it was there. Times begin with the first wait of all.
std::vector<TaskTrace> read_stamps(const Plan& plan, std::span<const TaskStamps> stamps);

/// The stamps of one launch at a time. Empty until it is told to trace.
class TraceBuffer {
 public:
  explicit TraceBuffer(std::shared_ptr<StepDevice> device) : device_(std::move(device)) {}

  /// Room for the largest of the plans. @throws Error{out_of_memory}
  void open(const std::vector<Plan>& plans);
  void close();
  bool is_open() const { return stamps_.data() != nullptr; }
  /// Before a launch. @return where it writes; nullptr: it takes no stamps
  TaskStamps* begin();
  /// After a launch of `plan`, which outlives this: brings them to the host, once the launch is over.
  void receive(const Plan& plan);
  /// Of the launch that was received, which has ended well.
  std::vector<TaskTrace> trace() const;
  /// The launch that was received has not ended well.
  void drop() { plan_ = nullptr; }

 private:
  const std::shared_ptr<StepDevice> device_;
  DeviceBuffer stamps_;
  DeviceBuffer received_;  ///< pinned
  const Plan* plan_ = nullptr;
};

}  // namespace mimo_rt::cuda

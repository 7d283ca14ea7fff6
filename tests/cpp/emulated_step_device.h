// A GPU for the executor: the persistent kernel's own source under emulation, compiled once for all
// tests (emulated_step_device.cpp). Copies and launches happen when they are waited for, so that what
// is changed or read too early is seen; a launch goes on only while it is.
#pragma once

#include "cuda/persistent.h"
#include "cuda/step_device.h"
#include "emulation/schedule.h"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "host_device_memory.h"

namespace fixture {

using namespace mimo_rt;

class EmulatedStepDevice : public HostDeviceMemory<cuda::StepDevice> {
 public:
  ~EmulatedStepDevice() override {
    for (const auto& [memory, size] : pinned_) std::free(memory);
  }
  uint32_t num_multiprocessors() const override { return num_sms; }
  void* allocate_pinned(uint64_t num_bytes) override {
    const uint64_t size = (num_bytes + 255) / 256 * 256;
    void* memory = std::aligned_alloc(256, size);
    std::memset(memory, 0, size);
    pinned_[memory] = size;
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    finish_running();
    if (pinned_.erase(memory)) std::free(memory);
  }
  void release(void* memory) noexcept override {
    finish_running();
    HostDeviceMemory::release(memory);
  }
  void download(void* to, const void* from, uint64_t num_bytes) override {
    finish_running();
    HostDeviceMemory::download(to, from, num_bytes);
  }

  void send(void* to, const void* pinned, uint64_t num_bytes) override {
    queue_.push_back([=] { std::memcpy(to, pinned, num_bytes); });
  }
  void launch(const cuda::PersistentParams& params, uint32_t num_blocks) override {
    cuda::check_persistent(params, num_blocks);
    cuda::check_resident(num_blocks, max_resident_blocks, num_sms);
    cuda::check_room(launch_status, num_blocks);
    ++num_launches;
    num_epochs_launched += params.num_epochs;
    delay_seed = params.delay_seed;
    queue_.push_back([this, params, num_blocks] { begin(params, num_blocks); });
  }
  void receive(void* pinned, const void* from, uint64_t num_bytes) override {
    num_bytes_received += num_bytes;
    queue_.push_back([=] { std::memcpy(pinned, from, num_bytes); });
  }
  using StepDevice::wait;
  bool wait(uint64_t timeout_ns, const std::function<bool()>& has_news) override {
    if (is_stuck || has_news()) return false;
    for (;;) {
      if (running_ && !running_->advance(timeout_ns / kNsPerRound)) return false;
      if (running_) error = running_->result().error;
      running_.reset();
      if (queue_.empty()) break;
      const auto operation = std::move(queue_.front());
      queue_.pop_front();
      operation();
    }
    if (!loss.empty()) fail(ErrorCode::device_lost, "emulated", loss);
    if (!error.empty()) fail(ErrorCode::device_lost, "emulated", error);
    return true;
  }

  /// Time passes by so much per round of the emulator, whose patience is 2500 idle rounds: a timeout of so many
  /// milliseconds is a little less, also twice.
  static constexpr uint64_t kNsPerRound = 1000;
  static constexpr uint32_t kPatienceMs = 1;

  uint32_t num_sms = 8;
  uint64_t seed = 0;  ///< of the schedule
  uint64_t num_launches = 0, num_epochs_launched = 0, num_bytes_received = 0;
  uint32_t delay_seed = 0;  ///< of the last launch
  bool is_stuck = false;  ///< no step ends any more
  std::string loss;       ///< steps fail with this
  uint32_t max_resident_blocks = 8;  ///< what limits of the device leave
  int launch_status = 0;             ///< CUDA's answer to a launch
  std::string error;  ///< of the emulation
  emulation::Skip fault = emulation::Skip::none;  ///< planted into launches, see emulation::LaunchOptions::skip
  uint32_t fault_ordinal = 0;
  bool cuts_sums = false;  ///< see emulation::LaunchOptions
  bool overwrites_routes = false;  ///< planted: no waiter lets the readers of a route end before it brings another

 private:
  /// Until then it may use any memory.
  void finish_running() {
    if (running_) running_->advance(~uint64_t{0});
  }
  void begin(const cuda::PersistentParams& params, uint32_t num_blocks);
  std::vector<std::span<uint8_t>> caches_of(const cuda::StepTables& step) const;

  std::map<void*, uint64_t> pinned_;
  std::deque<std::function<void()>> queue_;
  std::unique_ptr<emulation::Launch> running_;
};

}  // namespace fixture

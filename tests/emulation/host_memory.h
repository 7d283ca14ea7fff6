// Host memory that a kernel writes, as the host sees it while the kernel runs.
//
// The host sees what the device has written, by anyone, at a release of system scope, and all of it
// when the launch ends. Stores of a smaller scope may show at once, but without what came before
// them; ordinary ones show when it suits them (in random order: by chance, word by word). What the
// host writes the device sees as soon as it runs again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace emulation {

class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(const std::vector<std::span<uint8_t>>& spans, uint64_t seed)
      : random_(seed), is_random_(seed != 0) {
    for (const std::span<uint8_t>& memory : spans) {
      const std::vector<uint8_t> bytes(memory.begin(), memory.end());
      views_.push_back({memory, bytes, bytes});
    }
  }

  /// The device goes on. Until it stops, memory is what the device sees.
  void enter_device() {
    for (View& view : views_) {
      for (size_t i = 0; i < view.memory.size(); ++i)
        if (view.memory[i] != view.host[i]) view.device[i] = view.host[i] = view.memory[i];
      std::ranges::copy(view.device, view.memory.begin());
    }
  }
  /// The device stops for now. Until it goes on, memory is what the host sees.
  void leave_device() {
    for (View& view : views_) {
      view.device.assign(view.memory.begin(), view.memory.end());
      for (size_t i = 0; is_random_ && i + 4 <= view.host.size(); i += 4)
        if (std::memcmp(&view.host[i], &view.device[i], 4) && random_() % 2 == 0)
          std::memcpy(&view.host[i], &view.device[i], 4);
      std::ranges::copy(view.host, view.memory.begin());
    }
  }
  /// The launch is over: what is in memory is what everybody sees.
  void end() { views_.clear(); }

  /// A release of system scope.
  void publish() {
    for (View& view : views_) view.host.assign(view.memory.begin(), view.memory.end());
  }
  /// A word that is stored by itself.
  void publish(const void* address, size_t num_bytes) {
    const auto* byte = static_cast<const uint8_t*>(address);
    for (View& view : views_)
      if (byte >= view.memory.data() && byte + num_bytes <= view.memory.data() + view.memory.size())
        std::memcpy(view.host.data() + (byte - view.memory.data()), byte, num_bytes);
  }

 private:
  struct View {
    std::span<uint8_t> memory;
    std::vector<uint8_t> host, device;  ///< what each sees
  };
  std::vector<View> views_;
  std::mt19937_64 random_;
  bool is_random_ = false;
};

}  // namespace emulation

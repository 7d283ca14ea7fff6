#include "cpu/core_pin.h"

#include "core/pin.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <utility>

namespace mimo_rt::cpu {
namespace {

int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

/// The second number of "<ran ns> <was ready, did not run ns> <time slices>"; -1: unreadable.
int64_t read_delay(int file) {
  char text[96];
  const ssize_t size = pread(file, text, sizeof text, 0);
  if (size <= 0) return -1;
  const char* const end = text + size;
  const auto* number = static_cast<const char*>(std::memchr(text, ' ', static_cast<size_t>(size)));
  int64_t delay_ns = -1;
  if (number) std::from_chars(number + 1, end, delay_ns);
  return delay_ns;
}

}  // namespace

CorePin::~CorePin() {
  if (delay_file_ >= 0) close(delay_file_);
}

void CorePin::watch() {
  CPU_ZERO(&allowed_);
  if (sched_getaffinity(0, sizeof allowed_, &allowed_) == 0)
    delay_file_ = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  reviewed_ns_ = now_ns();
  if (delay_file_ >= 0) delayed_ns_ = std::max<int64_t>(read_delay(delay_file_), 0);
}

void CorePin::bind(int core) {
  watch();
  core_ = core;
  bind_again(reviewed_ns_);
}

void CorePin::bind_again(int64_t now_ns) {
  if (!pin_this_thread(core_)) return lose_core(now_ns);
  is_bound_ = true;
  bound_ns_ = now_ns;
  missing_core_.store(-1, std::memory_order_relaxed);
}

void CorePin::lose_core(int64_t now_ns) {
  is_bound_ = false;
  bind_again_ns_ = now_ns + kFirstReleaseNs;
  missing_core_.store(core_, std::memory_order_relaxed);
}

bool CorePin::review() {
  const int64_t now = now_ns();
  if (now - reviewed_ns_ < kReviewNs) return false;
  if (is_bound_ && sched_getcpu() != core_) lose_core(now);
  // A kernel that does not count: nobody else uses the core as far as anyone can tell.
  return judge(now, delay_file_ < 0 ? delayed_ns_ : std::max(read_delay(delay_file_), delayed_ns_));
}

bool CorePin::judge(int64_t now_ns, int64_t delayed_ns) {
  const int64_t passed_ns = now_ns - std::exchange(reviewed_ns_, now_ns);
  const bool is_shared = (delayed_ns - delayed_ns_) * kSharedPart > passed_ns;
  delayed_ns_ = delayed_ns;
  was_shared_ |= is_shared;
  if (is_bound_) {
    if (is_shared) release(now_ns);
  } else if (core_ >= 0 && !is_shared && now_ns >= bind_again_ns_) {
    bind_again(now_ns);
  }
  return is_shared;
}

void CorePin::release(int64_t now_ns) {
  if (now_ns - bound_ns_ >= kMaxReleaseNs) release_ns_ = kFirstReleaseNs;  // it went well for long
  sched_setaffinity(0, sizeof allowed_, &allowed_);
  is_bound_ = false;
  bind_again_ns_ = now_ns + release_ns_;
  release_ns_ = std::min(2 * release_ns_, kMaxReleaseNs);
}

}  // namespace mimo_rt::cpu

// What ThreadSanitizer is told when a test is built with it: every lane is a thread of its own,
// these are the places where one synchronises with another, and the emulator's own state is no
// subject of the search. Without ThreadSanitizer all of this is nothing.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define EMULATION_UNCHECKED __attribute__((no_sanitize("thread")))
#else
#define EMULATION_UNCHECKED
#endif

namespace emulation {

/// While it lives, accesses of this lane are not looked at.
struct Unchecked {
#if defined(__SANITIZE_THREAD__)
  Unchecked() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unchecked() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Unchecked() {}  // not trivial: no warning about an unused variable
#endif
  Unchecked(const Unchecked&) = delete;
  Unchecked& operator=(const Unchecked&) = delete;
};

/// What this lane has done comes before what another does after `acquire_from` the same object.
inline void release_to([[maybe_unused]] const void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(const_cast<void*>(object));
#endif
}

inline void acquire_from([[maybe_unused]] const void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(const_cast<void*>(object));
#endif
}

/// Copies as a thread of its own, so that copies are unordered among themselves. Comes after the
/// `release_to(to)` of the thread that has issued it and before an `acquire_from(barrier)`.
EMULATION_UNCHECKED inline void copy_as_thread(uint8_t* to, const uint8_t* from, uint32_t num_bytes,
                                               [[maybe_unused]] const void* barrier) {
#if defined(__SANITIZE_THREAD__)
  void* scheduler = __tsan_get_current_fiber();
  void* self = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(self, __tsan_switch_to_fiber_no_sync);
  acquire_from(to);
#endif
  std::memcpy(to, from, num_bytes);  // intercepted: checked all the same
#if defined(__SANITIZE_THREAD__)
  release_to(barrier);
  __tsan_switch_to_fiber(scheduler, __tsan_switch_to_fiber_no_sync);
  __tsan_destroy_fiber(self);
#endif
}

}  // namespace emulation

// A fiber: a function with its own stack that can be suspended anywhere and resumed later.
//
// All fibers of a program run on one thread at a time, so nothing here is atomic; a lock of the caller's
// may hand them to another. On x86-64 a switch is a dozen instructions; elsewhere ucontext does it, much
// slower.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "emulation/race_check.h"

namespace emulation {

#if defined(__x86_64__)
/// Pushes the registers that a callee must keep, swaps stacks, pops the other side's.
[[gnu::naked, gnu::noinline]] inline void switch_stack(void** /*saved*/, void* /*loaded*/) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}
#endif

class Fiber {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kStackBytes = 256 * 1024;
#else
  static constexpr size_t kStackBytes = 64 * 1024;
#endif
  static constexpr size_t kGuardBytes = 4096;

  Fiber() {
    void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<uint8_t*>(memory) + kGuardBytes;
    mprotect(memory, kGuardBytes, PROT_NONE);
  }
  ~Fiber() { munmap(stack_ - kGuardBytes, kStackBytes + kGuardBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next `resume` begins `entry`, which must end with `suspend`. What was left on the stack by
  /// an abandoned run is forgotten. `color` spreads the stack tops over cache sets.
  void start(void (*entry)(), size_t color) {
    entry_ = entry;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
    // The thread of a run that has ended serves again: making one clears a megabyte. `acquire_from`
    // at the start of a lane orders it after that run anyway.
    if (!thread_) thread_ = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
    auto** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64 - color % 61 * 64);
    *--top = nullptr;                              // begin_ never returns to here
    *--top = reinterpret_cast<void*>(&begin);      // what `ret` jumps to
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the six saved registers
    stack_pointer_ = top;
#else
    (void)color;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    makecontext(&context_, &begin, 0);
#endif
  }

  /// Runs the fiber until it suspends. Called from outside all fibers.
  EMULATION_UNCHECKED void resume() {
    current_ = this;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
    outside_thread_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
    switch_stack(&outside_, stack_pointer_);
#else
    swapcontext(&outside_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    current_ = nullptr;
  }

  /// For a run that will never be resumed: orders what it has done before `acquire_from(object)`.
  EMULATION_UNCHECKED void abandon([[maybe_unused]] const void* object) {
#if defined(__SANITIZE_THREAD__)
    void* caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
    release_to(object);
    __tsan_switch_to_fiber(caller, __tsan_switch_to_fiber_no_sync);
    thread_ = nullptr;  // ended in the middle: destroying it would be reported
#endif
  }

  /// Goes back to the caller of `resume`. Called inside a fiber.
  EMULATION_UNCHECKED static void suspend() {
    Fiber& self = *current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&self.fake_stack_, outside_stack_, outside_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(outside_thread_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
    switch_stack(&self.stack_pointer_, outside_);
#else
    swapcontext(&self.context_, &outside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self.fake_stack_, &outside_stack_, &outside_bytes_);
#endif
  }

 private:
  EMULATION_UNCHECKED static void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &outside_stack_, &outside_bytes_);
#endif
    current_->entry_();
    __builtin_unreachable();
  }

  static inline Fiber* current_ = nullptr;
#if defined(__x86_64__)
  static inline void* outside_ = nullptr;
  void* stack_pointer_ = nullptr;
#else
  static inline ucontext_t outside_;
  ucontext_t context_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  static inline const void* outside_stack_ = nullptr;
  static inline size_t outside_bytes_ = 0;
  void* fake_stack_ = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  static inline void* outside_thread_ = nullptr;
  void* thread_ = nullptr;
#endif
  uint8_t* stack_ = nullptr;
  void (*entry_)() = nullptr;
};

}  // namespace emulation

// The one exception type of the library and its codes.
#pragma once

#include <mimo_rt/api.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace mimo_rt {

// X-macro: Python's exception classes and `error_name` are generated from this list.
#define MIMO_RT_ERROR_CODES(X)                                                        \
  X(invalid_argument)  /* the caller passed a value outside its documented range */   \
  X(io)                /* the operating system refused a read, a write or a map */    \
  X(bad_format)        /* a file's contents break its format */                       \
  X(missing_tensor)    /* a tensor that the config implies is not in the files */     \
  X(shape_mismatch)    /* a tensor's shape or dtype is not what the config implies */ \
  X(unsupported_shape) /* valid in the format, but not handled by this build */       \
  X(unavailable)       /* not built in, or this machine cannot run it */              \
  X(out_of_memory)     /* an allocation was refused */                                \
  X(capacity)          /* a fixed limit (context, KV pages, rows) is exhausted */     \
  X(plan_invalid)      /* Plan::verify() found a violation */                         \
  X(timeout)           /* a worker waited past its deadline: the engine is stopped */ \
  X(cancelled)         /* the caller asked for a stop */                              \
  X(device_lost)       /* the device failed: the engine cannot go on */               \
  X(internal)          /* a broken invariant of the library itself: please report */

enum class ErrorCode {
#define MIMO_RT_X(name) name,
  MIMO_RT_ERROR_CODES(MIMO_RT_X)
#undef MIMO_RT_X
};

/// The code's name as in the list above, e.g. "bad_format".
MIMO_RT_API std::string_view error_name(ErrorCode code) noexcept;

/// Every public function throws only `Error` and `std::bad_alloc`; what a caller's callback throws passes through it.
///
/// `what()` reads `[<where>] <what is wrong>: expected <value>, got <value>. <next step>`.
class MIMO_RT_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace mimo_rt

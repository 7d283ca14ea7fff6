// Names of the error codes, from the one list in the public header.
#include <mimo_rt/error.h>

namespace mimo_rt {

std::string_view error_name(ErrorCode code) noexcept {
  switch (code) {
#define MIMO_RT_X(name)   \
  case ErrorCode::name: \
    return #name;
    MIMO_RT_ERROR_CODES(MIMO_RT_X)
#undef MIMO_RT_X
  }
  return "unknown";
}

}  // namespace mimo_rt

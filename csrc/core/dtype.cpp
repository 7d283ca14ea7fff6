// Names and sizes of the element types, from the one list in the public header.
#include <mimo_rt/dtype.h>

namespace mimo_rt {

std::string_view dtype_name(DType dtype) noexcept {
  switch (dtype) {
#define MIMO_RT_X(name, bits, file_name) \
  case DType::name:                      \
    return #name;
    MIMO_RT_DTYPES(MIMO_RT_X)
#undef MIMO_RT_X
  }
  return "unknown";
}

uint32_t dtype_bits(DType dtype) noexcept {
  switch (dtype) {
#define MIMO_RT_X(name, bits, file_name) \
  case DType::name:                      \
    return bits;
    MIMO_RT_DTYPES(MIMO_RT_X)
#undef MIMO_RT_X
  }
  return 0;
}

}  // namespace mimo_rt

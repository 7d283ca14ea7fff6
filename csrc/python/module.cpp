// The extension module mimo_rt._C: bindings of the public headers, no logic.
#include "bind.h"

#include <mimo_rt/version.h>

PYBIND11_MODULE(_C, m) {
  using namespace mimo_rt::python;
  m.doc() = "C++ core of mimo_rt. The friendly layer is the package mimo_rt itself.";
  m.attr("__version__") = MIMO_RT_VERSION;
  m.attr("__commit__") = MIMO_RT_COMMIT;
  bind_error(m);
  bind_device(m);
  bind_config(m);
  bind_checkpoint(m);
  bind_plan(m);
  bind_packed_cache(m);
  bind_costs(m);
  bind_engine(m);
  bind_session(m);
  bind_kernel_bench(m);
}

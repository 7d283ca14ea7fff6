#include "bind.h"

#include <mimo_rt/device.h>
#include <pybind11/stl.h>

namespace mimo_rt::python {

void bind_device(py::module_& m) {
  py::class_<Backend>(m, "Backend", "A place where a plan can run.")
      .def_readonly("name", &Backend::name)
      .def_readonly("available", &Backend::available)
      .def_readonly("reason", &Backend::reason)
      .def("__repr__", [](const Backend& b) {
        return "Backend(name='" + b.name + "', available=" + (b.available ? "True" : "False") + ", reason='" +
               b.reason + "')";
      });
  m.def("list_backends", &list_backends, "All backends of this version, with the reason why one is not available.");
  m.def("resolve_backend", &resolve_backend, py::arg("name"), "Turns 'auto', 'cpu', … into an available backend.");
  m.def("probe_huge_pages", &probe_huge_pages, py::arg("num_bytes"), py::call_guard<py::gil_scoped_release>(),
        "How many bytes of so much memory the kernel puts into huge pages.");
  m.def("free_gpu_bytes", &free_gpu_bytes, py::call_guard<py::gil_scoped_release>(),
        "Memory of the first visible GPU that nobody has taken.");
  m.def("num_usable_cores", &num_usable_cores, "Cores of the affinity mask, limited by the cgroup quota.");
}

}  // namespace mimo_rt::python

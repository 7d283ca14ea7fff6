#include "bind.h"

#include <mimo_rt/checkpoint.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

namespace mimo_rt::python {

void bind_checkpoint(py::module_& m) {
  py::class_<TensorInfo>(m, "TensorInfo", "Name, dtype, shape and place of one tensor.")
      .def_readonly("name", &TensorInfo::name)
      .def_property_readonly("dtype", [](const TensorInfo& t) { return dtype_name(t.dtype); })
      .def_readonly("shape", &TensorInfo::shape)
      .def_property_readonly("num_bytes", [](const TensorInfo& t) { return t.data.size(); })
      .def_readonly("file_name", &TensorInfo::file_name);
  py::class_<Checkpoint>(m, "Checkpoint", "A memory-mapped checkpoint directory; reads headers only.")
      .def_static(
          "open",
          [](const std::filesystem::path& directory, uint64_t max_header_bytes, bool use_mmap) {
            return Checkpoint::open(directory, {.max_header_bytes = max_header_bytes, .use_mmap = use_mmap});
          },
          py::arg("directory"), py::arg("max_header_bytes") = Checkpoint::Options{}.max_header_bytes,
          py::arg("use_mmap") = true, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("directory", &Checkpoint::directory)
      .def_property_readonly("tensors", &Checkpoint::tensors)
      .def("validate", &Checkpoint::validate, py::arg("config"), py::call_guard<py::gil_scoped_release>(),
           "Checks that every tensor the config implies is there with the right shape and dtype, and no other.");
}

}  // namespace mimo_rt::python

#include "bind.h"

#include <mimo_rt/costs.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

namespace mimo_rt::python {

void bind_costs(py::module_& m) {
  py::class_<CostKey>(m, "CostKey", "Whose costs a table holds; fields as in mimo_rt/costs.h.")
      .def(py::init(&from_kwargs<CostKey>))
      .def_readwrite("backend", &CostKey::backend)
      .def_readwrite("num_workers", &CostKey::num_workers)
      .def_readwrite("activations", &CostKey::activations)
      .def_readwrite("kernel_set", &CostKey::kernel_set)
      .def_readwrite("processor", &CostKey::processor);
  py::class_<CostTable> table(m, "CostTable", "Measured times, in ns; fields as in mimo_rt/costs.h.");
  table.def(py::init(&from_kwargs<CostTable>))
      .def_readwrite("matrix_ns", &CostTable::matrix_ns)
      .def_readwrite("attention_ns", &CostTable::attention_ns)
      .def_readwrite("norm_ns", &CostTable::norm_ns)
      .def_readwrite("prepare_ns", &CostTable::prepare_ns)
      .def_readwrite("edge_ns", &CostTable::edge_ns)
      .def_readwrite("edge_worker_ns", &CostTable::edge_worker_ns)
      .def_property_readonly("is_measured", &CostTable::is_measured);
  table.attr("tokens") = py::cast(CostTable::kTokens);
  table.attr("formats") = py::cast(CostTable::kFormats);
  // The GIL is held only while `progress` runs, which may raise.
  m.def(
      "measure_costs",
      [](const CostKey& key, const std::function<void(double)>& progress) {
        const py::gil_scoped_release release;
        return measure_costs(key, progress);
      },
      py::arg("key"), py::arg("progress") = std::function<void(double)>());
  m.def("cost_key", &cost_key, py::arg("device"), py::arg("num_workers") = 0, py::arg("activations") = "bf16",
        "The key of an engine that opens here; 0 workers: all usable cores, or the multiprocessors of the GPU.");
  m.def("cost_table_path", &cost_table_path, py::arg("key"));
  m.def("save_cost_table", &save_cost_table, py::arg("key"), py::arg("table"));
  m.def("load_cost_table", &load_cost_table, py::arg("key"));
}

}  // namespace mimo_rt::python

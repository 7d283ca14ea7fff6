// One function per binding file; module.cpp calls them in order.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace mimo_rt::python {

namespace py = pybind11;

void bind_error(py::module_& m);
void bind_device(py::module_& m);
void bind_config(py::module_& m);
void bind_checkpoint(py::module_& m);
void bind_plan(py::module_& m);
void bind_packed_cache(py::module_& m);
void bind_costs(py::module_& m);
void bind_engine(py::module_& m);
void bind_session(py::module_& m);
void bind_kernel_bench(py::module_& m);

/// Sets the attributes named in `kwargs` on a default-constructed T; an unknown name raises TypeError.
template <typename T>
T from_kwargs(const py::kwargs& kwargs) {
  T value{};
  py::object wrapper = py::cast(&value, py::return_value_policy::reference);
  for (const auto& [name, item] : kwargs) {
    if (!py::hasattr(wrapper, name))
      throw py::type_error(py::str(py::type::of(wrapper).attr("__name__")).cast<std::string>() +
                           ": unknown argument '" + py::str(name).cast<std::string>() + "'");
    wrapper.attr(name) = item;
  }
  return value;
}

}  // namespace mimo_rt::python

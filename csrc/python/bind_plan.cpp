#include "bind.h"

#include <mimo_rt/plan.h>
#include <pybind11/stl.h>

namespace mimo_rt::python {

void bind_plan(py::module_& m) {
  py::class_<PlanOptions> options(m, "PlanOptions", "What a plan is built for.");
  py::enum_<PlanOptions::FuseNorm>(options, "FuseNorm")
      .value("automatic", PlanOptions::FuseNorm::automatic)
      .value("yes", PlanOptions::FuseNorm::yes)
      .value("no", PlanOptions::FuseNorm::no);
  options.def(py::init(&from_kwargs<PlanOptions>))
      .def_readwrite("num_workers", &PlanOptions::num_workers)
      .def_readwrite("max_tokens", &PlanOptions::max_tokens)
      .def_readwrite("max_logit_rows", &PlanOptions::max_logit_rows)
      .def_readwrite("fuse_norm", &PlanOptions::fuse_norm)
      .def_readwrite("attention_split_keys", &PlanOptions::attention_split_keys)
      .def_readwrite("tag_edges", &PlanOptions::tag_edges)
      .def_readwrite("sample_by_all", &PlanOptions::sample_by_all)
      .def_readwrite("is_round", &PlanOptions::is_round)
      .def_readwrite("max_context_rows", &PlanOptions::max_context_rows)
      .def_readwrite("costs", &PlanOptions::costs)
      .def_readwrite("bytes_per_ns", &PlanOptions::bytes_per_ns)
      .def_readwrite("macs_per_ns", &PlanOptions::macs_per_ns)
      .def_readwrite("task_overhead_ns", &PlanOptions::task_overhead_ns);
  m.def("cuda_plan_options", &cuda_plan_options, "What every plan for the CUDA engine has.");
  m.def("cuda_max_step_tokens", &cuda_max_step_tokens, py::arg("config"), "The most rows of a step on device 'cuda'.");
  py::class_<BufferInfo>(m, "BufferInfo")
      .def_readonly("name", &BufferInfo::name)
      .def_readonly("rows", &BufferInfo::rows)
      .def_readonly("cols", &BufferInfo::cols)
      .def_readonly("element_bytes", &BufferInfo::element_bytes)
      .def_readonly("offset", &BufferInfo::offset)
      .def_readonly("num_bytes", &BufferInfo::bytes);
  py::class_<CounterInfo> counter(m, "CounterInfo");
  py::enum_<CounterInfo::Kind>(counter, "Kind")
      .value("counter", CounterInfo::Kind::counter)
      .value("tag", CounterInfo::Kind::tag);
  counter.def_readonly("name", &CounterInfo::name)
      .def_readonly("total", &CounterInfo::total)
      .def_readonly("kind", &CounterInfo::kind)
      .def_readonly("buffer", &CounterInfo::buffer);
  py::class_<VerifyReport>(m, "VerifyReport", "What Plan.verify() proved, in numbers.")
      .def_readonly("num_tasks", &VerifyReport::num_tasks)
      .def_readonly("num_waits", &VerifyReport::num_waits)
      .def_readonly("num_accesses", &VerifyReport::num_accesses)
      .def_readonly("num_ordered_pairs", &VerifyReport::num_ordered_pairs)
      .def_readonly("num_workers", &VerifyReport::num_workers)
      .def_readonly("num_counters", &VerifyReport::num_counters)
      .def_readonly("num_buffers", &VerifyReport::num_buffers)
      .def_readonly("seconds", &VerifyReport::seconds)
      .def("__str__", &VerifyReport::to_string);
  py::class_<Plan>(m, "Plan", "Tasks per worker, buffers, counters; equal inputs give equal bytes.")
      .def_static("build", &Plan::build, py::arg("config"), py::arg("options"), py::arg("draft") = nullptr,
                  py::call_guard<py::gil_scoped_release>())
      .def("verify", &Plan::verify, py::call_guard<py::gil_scoped_release>(),
           "Proves the plan sound for any number of tokens and active experts, or raises PlanInvalidError.")
      .def("dump", &Plan::dump, "One task per line.")
      .def("hash", &Plan::hash)
      .def_property_readonly("options", &Plan::options, py::return_value_policy::copy, "A copy.")
      .def_property_readonly("num_workers", &Plan::num_workers)
      .def_property_readonly("num_tasks", &Plan::num_tasks)
      .def_property_readonly("arena_bytes", &Plan::arena_bytes)
      .def_property_readonly("buffers", &Plan::buffers)
      .def_property_readonly("counters", &Plan::counters);
}

}  // namespace mimo_rt::python

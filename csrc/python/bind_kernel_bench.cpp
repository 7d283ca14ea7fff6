#include "bind.h"

#include <mimo_rt/kernel_bench.h>
#include <pybind11/stl.h>

namespace mimo_rt::python {

void bind_kernel_bench(py::module_& m) {
  py::class_<KernelCase>(m, "KernelCase", "A kernel and its shape; fields as in mimo_rt/kernel_bench.h.")
      .def(py::init(&from_kwargs<KernelCase>))
      .def_readwrite("kernel", &KernelCase::kernel)
      .def_readwrite("format", &KernelCase::format)
      .def_readwrite("num_tokens", &KernelCase::num_tokens)
      .def_readwrite("rows", &KernelCase::rows)
      .def_readwrite("k", &KernelCase::k)
      .def_readwrite("num_experts", &KernelCase::num_experts)
      .def_readwrite("experts_per_token", &KernelCase::experts_per_token)
      .def_readwrite("hidden_size", &KernelCase::hidden_size)
      .def_readwrite("width", &KernelCase::width)
      .def_readwrite("num_segments", &KernelCase::num_segments)
      .def_readwrite("num_kv_heads", &KernelCase::num_kv_heads)
      .def_readwrite("num_q_per_kv", &KernelCase::num_q_per_kv)
      .def_readwrite("qk_head_dim", &KernelCase::qk_head_dim)
      .def_readwrite("v_head_dim", &KernelCase::v_head_dim)
      .def_readwrite("num_keys", &KernelCase::num_keys)
      .def_readwrite("window_tokens", &KernelCase::window_tokens)
      .def_readwrite("split_keys", &KernelCase::split_keys)
      .def_readwrite("vocab_size", &KernelCase::vocab_size)
      .def_readwrite("num_workers", &KernelCase::num_workers)
      .def_readwrite("num_hops", &KernelCase::num_hops)
      .def_readwrite("num_signallers", &KernelCase::num_signallers);
  py::class_<KernelBenchOptions>(m, "KernelBenchOptions", "Where a kernel runs; fields as in mimo_rt/kernel_bench.h.")
      .def(py::init(&from_kwargs<KernelBenchOptions>))
      .def_readwrite("backend", &KernelBenchOptions::backend)
      .def_readwrite("rotation_bytes", &KernelBenchOptions::rotation_bytes)
      .def_readwrite("is_hot", &KernelBenchOptions::is_hot)
      .def_readwrite("activations", &KernelBenchOptions::activations)
      .def_readwrite("seed", &KernelBenchOptions::seed);
  py::class_<KernelWork>(m, "KernelWork", "What one call has to do.")
      .def_readonly("bytes", &KernelWork::bytes)
      .def_readonly("flops", &KernelWork::flops)
      .def_readonly("read_bytes", &KernelWork::read_bytes)
      .def_readonly("num_active_experts", &KernelWork::num_active_experts)
      .def_readonly("num_hops", &KernelWork::num_hops);
  py::class_<KernelTimes>(m, "KernelTimes", "Seconds of calls, of the plain reads between them, and of empty kernels.")
      .def_readonly("call_s", &KernelTimes::call_s)
      .def_readonly("read_s", &KernelTimes::read_s)
      .def_readonly("floor_s", &KernelTimes::floor_s);
  py::class_<KernelBench>(m, "KernelBench", "One kernel on random data of its own.")
      .def_static("open", &KernelBench::open, py::arg("kernel_case"), py::arg("options") = KernelBenchOptions{},
                  py::call_guard<py::gil_scoped_release>())
      // Copies: a reference would keep the kernel's data, a gigabyte of it, for as long as a result.
      .def_property_readonly("measured", &KernelBench::measured, py::return_value_policy::copy)
      .def_property_readonly("work", &KernelBench::work, py::return_value_policy::copy)
      .def_property_readonly("backend", &KernelBench::backend)
      .def_property_readonly("device", &KernelBench::device)
      .def_property_readonly("relative_error", &KernelBench::relative_error)
      .def("worst_error", &KernelBench::worst_error, py::call_guard<py::gil_scoped_release>())
      .def(
          "measure_peak",
          [](KernelBench& bench) {
            std::optional<VectorPeak> peak;
            {
              const py::gil_scoped_release release;
              peak = bench.measure_peak();
            }
            return peak ? py::object(py::make_tuple(peak->gflops, peak->source)) : py::none();
          },
          "(GFLOP/s of the kernel's multiply-adds in registers alone, instruction); None for edges and on cuda.")
      .def("run", &KernelBench::run, py::arg("num_calls"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace mimo_rt::python

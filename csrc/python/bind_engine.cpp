#include "bind.h"

#include <mimo_rt/engine.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

namespace mimo_rt::python {
namespace {

/// A field that may be a path, whose bytes may be no UTF-8: read as os.fsdecode and set as os.fsencode do.
template <std::string EngineOptions::*field>
void def_path(py::class_<EngineOptions>& options, const char* name) {
  options.def_property(
      name,
      [](const EngineOptions& self) {
        const std::string& bytes = self.*field;
        PyObject* text = PyUnicode_DecodeFSDefaultAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
        if (!text) throw py::error_already_set();
        return py::reinterpret_steal<py::str>(text);
      },
      [](EngineOptions& self, const std::filesystem::path& value) { self.*field = value.string(); });
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<EngineOptions> options(m, "EngineOptions",
                                    "How a model is loaded and run; fields as in mimo_rt/engine.h.");
  def_path<&EngineOptions::draft>(options, "draft");
  def_path<&EngineOptions::packed_cache>(options, "packed_cache");
  options.def(py::init(&from_kwargs<EngineOptions>))
      .def_readwrite("device", &EngineOptions::device)
      .def_readwrite("num_threads", &EngineOptions::num_threads)
      .def_readwrite("pin_threads", &EngineOptions::pin_threads)
      .def_readwrite("yield_cores", &EngineOptions::yield_cores)
      .def_readwrite("park_after_us", &EngineOptions::park_after_us)
      .def_readwrite("timeout_ms", &EngineOptions::timeout_ms)
      .def_readwrite("max_decode_tokens", &EngineOptions::max_decode_tokens)
      .def_readwrite("prefill_chunk_tokens", &EngineOptions::prefill_chunk_tokens)
      .def_readwrite("window_tokens", &EngineOptions::window_tokens)
      .def_readwrite("activations", &EngineOptions::activations)
      .def_readwrite("exact", &EngineOptions::exact)
      .def_readwrite("use_mmap", &EngineOptions::use_mmap)
      .def_readwrite("progress", &EngineOptions::progress);
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine", "A loaded model: packed weights, plans, executor.")
      .def_static("open", &Engine::open, py::arg("model_dir"), py::arg("options") = EngineOptions{},
                  py::call_guard<py::gil_scoped_release>())
      .def_static("synthetic", &Engine::synthetic, py::arg("config"), py::arg("seed") = 0,
                  py::arg("options") = EngineOptions{}, py::arg("draft") = nullptr,
                  py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("config", &Engine::config)
      .def_property_readonly("options", &Engine::options, py::return_value_policy::copy, "A copy.")
      .def_property_readonly("backend", &Engine::backend)
      .def_property_readonly("num_workers", &Engine::num_workers)
      .def_property_readonly("joins_steps", &Engine::joins_steps)
      .def_property_readonly("decode_plan", &Engine::decode_plan)
      .def_property_readonly("prefill_plan", &Engine::prefill_plan)
      .def_property_readonly("draft_config", &Engine::draft_config, py::return_value_policy::reference_internal)
      .def_property_readonly("round_plan", &Engine::round_plan, py::return_value_policy::reference_internal)
      .def_property_readonly("max_draft_tokens", &Engine::max_draft_tokens)
      .def_property_readonly("draft_bytes_per_round", &Engine::draft_bytes_per_round)
      .def_property_readonly("weight_bytes", &Engine::weight_bytes)
      .def_property_readonly("packed_cache", &Engine::packed_cache)
      .def_property_readonly("dense_bytes_per_step", &Engine::dense_bytes_per_step)
      .def_property_readonly("expert_bytes", &Engine::expert_bytes)
      .def("notes", &Engine::notes, py::call_guard<py::gil_scoped_release>(),  // reads a long file of the kernel's
           "What this machine does not grant, in sentences.")
      .def(
          "measure_bandwidth_gbs",
          [](Engine& engine, double seconds) {
            const py::gil_scoped_release release;
            return engine.measure_bandwidth_gbs(seconds, [] {
              const py::gil_scoped_acquire acquire;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            });
          },
          py::arg("seconds") = 0.2, "Signals are looked after about twice a second.")
      .def(
          "measure_vector_peak",
          [](Engine& engine, double seconds) {
            std::optional<VectorPeak> peak;
            {
              const py::gil_scoped_release release;
              peak = engine.measure_vector_peak(seconds);
            }
            return peak ? py::object(py::make_tuple(peak->gflops, peak->source)) : py::none();
          },
          py::arg("seconds") = 0.2, "(GFLOP/s, instruction); None for the reference, for cuda and with int8 activations.")
      // They wait for the engine, whose holder may want the interpreter.
      .def("set_tracing", &Engine::set_tracing, py::arg("on"), py::call_guard<py::gil_scoped_release>())
      .def("trace_json", &Engine::trace_json, py::call_guard<py::gil_scoped_release>(),
           "The last step as a Chrome trace: predicted and measured task times.");
  m.def("cuda_weight_bytes", &cuda_weight_bytes, py::arg("model_dir"), py::arg("draft") = "auto",
        py::call_guard<py::gil_scoped_release>(),
        "Memory of a GPU that a model's weights need; an error when the CUDA engine refuses the model. Needs no GPU.");
}

}  // namespace mimo_rt::python

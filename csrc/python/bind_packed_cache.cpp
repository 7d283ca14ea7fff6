#include "bind.h"

#include <mimo_rt/packed_cache.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <optional>

namespace mimo_rt::python {

void bind_packed_cache(py::module_& m) {
  py::class_<PackedCacheReport>(m, "PackedCacheReport", "What the cache did; fields as in mimo_rt/packed_cache.h.")
      .def_readonly("part", &PackedCacheReport::part)
      .def_property_readonly("state",
                             [](const PackedCacheReport& report) { return packed_cache_state_name(report.state); })
      .def_property_readonly("file",
                             [](const PackedCacheReport& report) {
                               return report.file.empty() ? std::nullopt : std::optional(report.file);
                             },
                             "None where C++ has an empty path.")
      .def_readonly("message", &PackedCacheReport::message);
  py::class_<PackedCacheEntry>(m, "PackedCacheEntry", "A file of a packed cache; fields as in mimo_rt/packed_cache.h.")
      .def_readonly("file", &PackedCacheEntry::file)
      .def_readonly("num_bytes", &PackedCacheEntry::num_bytes)
      .def_readonly("is_usable", &PackedCacheEntry::is_usable)
      .def_readonly("part", &PackedCacheEntry::part)
      .def_readonly("source_dir", &PackedCacheEntry::source_dir)
      .def_readonly("library_version", &PackedCacheEntry::library_version);
  m.def("cache_directory", &cache_directory);
  m.def("packed_cache_directory", &packed_cache_directory, py::arg("packed_cache"));
  m.def("list_packed_cache", &list_packed_cache, py::arg("directory"));
  m.def("clear_packed_cache", &clear_packed_cache, py::arg("directory"));
}

}  // namespace mimo_rt::python

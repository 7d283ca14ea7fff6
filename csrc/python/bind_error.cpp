// mimo_rt::Error -> one Python exception class per ErrorCode, all derived from MimoRtError, with `.code`.
#include "bind.h"

#include <mimo_rt/error.h>

#include <string>

namespace mimo_rt::python {
namespace {

// The builtin that callers may already catch for this kind of error.
PyObject* builtin_base(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
    case ErrorCode::bad_format:
    case ErrorCode::shape_mismatch: return PyExc_ValueError;
    case ErrorCode::io: return PyExc_OSError;
    case ErrorCode::missing_tensor: return PyExc_LookupError;
    case ErrorCode::out_of_memory: return PyExc_MemoryError;
    case ErrorCode::timeout: return PyExc_TimeoutError;
    default: return nullptr;
  }
}

// bad_format -> BadFormatError
std::string class_name(std::string_view code) {
  std::string name;
  bool upper = true;
  for (const char c : code) {
    if (c == '_') {
      upper = true;
      continue;
    }
    name += upper ? static_cast<char>(c - 'a' + 'A') : c;
    upper = false;
  }
  return name + "Error";
}

py::dict& classes() {
  static auto* dict = new py::dict();  // lives as long as the interpreter
  return *dict;
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const std::string code(error_name(error.code()));
    // Messages quote paths, which are bytes: what is no UTF-8 shows as \xNN.
    const std::string_view what = error.what();
    const py::object text = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(what.data(), static_cast<Py_ssize_t>(what.size()), "backslashreplace"));
    if (!text) return;  // out of memory: Python has set that error
    const py::object instance = classes()[py::str(code)](text);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(instance.ptr())), instance.ptr());
  }
}

}  // namespace

void bind_error(py::module_& m) {
  const py::object base = py::reinterpret_steal<py::object>(
      PyErr_NewExceptionWithDoc("mimo_rt.errors.MimoRtError", "Base of all errors of mimo_rt; `.code` names the kind.",
                                PyExc_RuntimeError, nullptr));
  base.attr("code") = "";
  m.attr("MimoRtError") = base;
  const auto add = [&](ErrorCode code, std::string_view name) {
    PyObject* builtin = builtin_base(code);
    py::tuple bases = py::make_tuple(base);
    if (builtin) bases = py::make_tuple(base, py::reinterpret_borrow<py::object>(builtin));
    const std::string short_name = class_name(name);
    const py::object type = py::reinterpret_steal<py::object>(
        PyErr_NewException(("mimo_rt.errors." + short_name).c_str(), bases.ptr(), nullptr));
    if (!type) throw py::error_already_set();
    type.attr("code") = std::string(name);
    m.attr(short_name.c_str()) = type;
    classes()[py::str(std::string(name))] = type;
  };
#define MIMO_RT_X(name) add(ErrorCode::name, #name);
  MIMO_RT_ERROR_CODES(MIMO_RT_X)
#undef MIMO_RT_X
  py::register_exception_translator(&translate);
}

}  // namespace mimo_rt::python

#include "tensors_from_python.h"

#include "dict_reader.h"
#include "formats/weights_codec.h"

namespace py = pybind11;

namespace musespark {
namespace {

WeightFormat weight_format(py::handle value, const std::string& path) {
  std::string allowed;
  for (const std::string& name : weight_format_names()) {
    if (py::isinstance<py::str>(value) && value.cast<std::string>() == name) {
      return weight_format_from_name(name);
    }
    allowed += (allowed.empty() ? "" : ", ") + name;
  }
  DictReader::fail(path, shown(value), "one of " + allowed);
}

}  // namespace

HeldBuffer::HeldBuffer(py::handle object, const std::string& path) {
  if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) {
    PyErr_Clear();  // TypeError or BufferError; ours says which tensor
    DictReader::fail(path, shown(py::type::of(object)), "a contiguous buffer");
  }
}

std::map<std::string, TensorView> tensors_from_python(const py::dict& tensors, HeldBuffers& held) {
  std::map<std::string, TensorView> out;
  for (const auto& item : tensors) {
    if (!py::isinstance<py::str>(item.first)) {
      DictReader::fail("tensors", shown(item.first), "names as strings");
    }
    const auto name = item.first.cast<std::string>();
    const std::string path = "tensors['" + name + "']";
    if (!py::isinstance<py::tuple>(item.second) || py::len(item.second) != 4) {
      DictReader::fail(path, shown(item.second), "a tuple (format, rows, cols, buffer)");
    }
    const auto tuple = py::reinterpret_borrow<py::tuple>(item.second);
    held.push_back(std::make_unique<HeldBuffer>(tuple[3], path));
    out[name] = {weight_format(tuple[0], path), to_integer(tuple[1], path),
                 to_integer(tuple[2], path), held.back()->data(), held.back()->bytes()};
  }
  return out;
}

}  // namespace musespark

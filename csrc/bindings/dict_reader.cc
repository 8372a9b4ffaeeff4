#include "dict_reader.h"

namespace py = pybind11;

namespace musespark {

std::string shown(py::handle value) {
  std::string text = py::repr(value).cast<std::string>();
  constexpr std::size_t kMost = 80;
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

std::int64_t to_integer(py::handle value, const std::string& path) {
  const char* allowed = "a 64-bit integer";
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) {
    DictReader::fail(path, shown(value), allowed);
  }
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long out = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0) DictReader::fail(path, shown(value), allowed);
  return out;
}

double to_real(py::handle value, const std::string& path) {
  const bool number =
      PyFloat_Check(value.ptr()) || PyIndex_Check(value.ptr()) || py::hasattr(value, "__float__");
  if (PyBool_Check(value.ptr()) || !number) DictReader::fail(path, shown(value), "a number");
  const double out = PyFloat_AsDouble(value.ptr());
  if (out == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return out;
}

DictReader::DictReader(py::handle value, std::string path) : path_(std::move(path)) {
  if (!py::isinstance<py::dict>(value))
    fail(path_.empty() ? "spec" : path_, shown(value), "a dict");
  dict_ = py::reinterpret_borrow<py::dict>(value);
}

void DictReader::fail(const std::string& path, const std::string& got, const std::string& allowed) {
  throw InvalidRequest(path + ": got " + got + ", allowed is " + allowed);
}

std::string DictReader::path(const std::string& key) const {
  return path_.empty() ? key : path_ + "." + key;
}

void DictReader::finish() const {
  for (const auto& item : dict_) {
    if (!py::isinstance<py::str>(item.first)) {
      throw InvalidRequest(path(shown(item.first)) + ": keys are strings");
    }
    const auto key = item.first.cast<std::string>();
    if (read_.contains(key)) continue;
    std::string known;
    for (const std::string& name : read_) known += (known.empty() ? "" : ", ") + name;
    throw InvalidRequest(path(key) + ": unknown, allowed is one of " + known);
  }
}

bool DictReader::has(const char* key) const {
  read_.insert(key);
  return dict_.contains(key) && !dict_[key].is_none();
}

py::object DictReader::value(const char* key) {
  read_.insert(key);
  if (!dict_.contains(key)) throw InvalidRequest(path(key) + ": missing");
  return dict_[key];
}

std::int64_t DictReader::integer(const char* key, std::int64_t low, std::int64_t high) {
  const py::object given = value(key);
  const std::int64_t out = to_integer(given, path(key));
  if (out < low || out > high) {
    fail(path(key), shown(given),
         "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return out;
}

std::uint64_t DictReader::unsigned_integer(const char* key) {
  const py::object given = value(key);
  const char* allowed = "an integer from 0 to 2**64 - 1";
  if (PyBool_Check(given.ptr()) || !PyIndex_Check(given.ptr()))
    fail(path(key), shown(given), allowed);
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(given.ptr()));
  if (!number) throw py::error_already_set();
  const unsigned long long out = PyLong_AsUnsignedLongLong(number.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();  // OverflowError: negative or too large
    fail(path(key), shown(given), allowed);
  }
  return out;
}

double DictReader::real(const char* key) { return to_real(value(key), path(key)); }

bool DictReader::boolean(const char* key) {
  const py::object given = value(key);
  if (!PyBool_Check(given.ptr())) fail(path(key), shown(given), "True or False");
  return given.ptr() == Py_True;
}

std::string DictReader::text(const char* key) {
  const py::object given = value(key);
  if (!py::isinstance<py::str>(given)) fail(path(key), shown(given), "a string");
  return given.cast<std::string>();
}

DictReader DictReader::dict(const char* key) { return DictReader(value(key), path(key)); }

py::sequence DictReader::list(const char* key) {
  const py::object given = value(key);
  if (!py::isinstance<py::list>(given) && !py::isinstance<py::tuple>(given)) {
    fail(path(key), shown(given), "a list");
  }
  return given;
}

}  // namespace musespark

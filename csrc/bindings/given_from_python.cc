#include "given_from_python.h"

#include <pybind11/numpy.h>

#include <algorithm>

#include "dict_reader.h"

namespace py = pybind11;

namespace musespark {
namespace {

template <class T>
py::array_t<T> array_of(py::handle value, std::int64_t rows, std::int64_t cols,
                        const std::string& path) {
  const bool fits = py::isinstance<py::array_t<T, py::array::c_style>>(value);
  const auto array = fits ? py::reinterpret_borrow<py::array_t<T>>(value) : py::array_t<T>();
  if (!fits || array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != cols) {
    const py::object shape = py::getattr(value, "shape", py::none());
    DictReader::fail(path, fits ? "shape " + shown(shape) : shown(value),
                     "a contiguous array of " + shown(py::dtype::of<T>()) + " [" +
                         std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
  return array;
}

std::vector<RopePlace> places_from_python(py::handle value, std::int64_t count,
                                          const std::string& path) {
  const auto array = array_of<std::int32_t>(value, count, 3, path);
  std::vector<RopePlace> out(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(array.data(i, 0), 3, out[static_cast<std::size_t>(i)].begin());
  }
  return out;
}

}  // namespace

SharedFloats floats_from_python(py::handle array, std::int64_t count, std::int64_t hidden,
                                const std::string& path) {
  const auto values = array_of<float>(array, count, hidden, path);
  const auto size = static_cast<std::size_t>(values.size());
  std::shared_ptr<float[]> out(new float[size]);
  std::copy_n(values.data(), size, out.get());
  return out;
}

std::vector<SharedFloats> taps_from_python(const py::sequence& taps, std::int64_t count,
                                           std::int64_t hidden, const std::string& path) {
  std::vector<SharedFloats> out;
  for (const auto& tap : taps) out.push_back(floats_from_python(tap, count, hidden, path));
  return out;
}

std::vector<GivenRows> given_from_python(const py::sequence& given, std::int64_t hidden) {
  std::vector<GivenRows> out;
  for (const auto& one : given) {
    const std::string at = "given[" + std::to_string(out.size()) + "]";
    DictReader d(one, at);
    GivenRows span;
    span.first = d.integer("first");
    span.count = d.integer("count");
    span.advance = d.integer("advance");
    if (d.has("places")) {
      span.places = places_from_python(d.value("places"), span.count, d.path("places"));
    }
    if (d.has("rows")) {
      span.rows = floats_from_python(d.value("rows"), span.count, hidden, d.path("rows"));
    }
    if (d.has("taps")) {
      span.taps = taps_from_python(d.list("taps"), span.count, hidden, d.path("taps"));
    }
    d.finish();
    out.push_back(std::move(span));
  }
  return out;
}

}  // namespace musespark

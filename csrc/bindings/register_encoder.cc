// _core.Encoder.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <span>
#include <vector>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "dict_reader.h"
#include "model/encoder.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

class PyEncoder {
 public:
  PyEncoder(const py::dict& spec, const py::dict& tensors, int threads)
      : pool_(threads),
        encoder_(spec_from_python(spec), tensors_from_python(tensors, held_), pool_) {}

  // texts: one-dimensional int32 arrays.
  py::array_t<float> embed(const py::sequence& texts) {
    std::vector<py::array_t<std::int32_t>> arrays;
    std::vector<std::span<const std::int32_t>> spans;
    for (const py::handle text : texts) {
      if (!py::isinstance<py::array_t<std::int32_t, py::array::c_style>>(text)) {
        DictReader::fail("texts[" + std::to_string(arrays.size()) + "]", shown(text),
                         "an int32 array");
      }
      arrays.push_back(py::reinterpret_borrow<py::array_t<std::int32_t>>(text));
      spans.emplace_back(arrays.back().data(), static_cast<std::size_t>(arrays.back().size()));
    }
    py::array_t<float> out(
        {static_cast<py::ssize_t>(spans.size()), static_cast<py::ssize_t>(encoder_.spec().hidden)});
    float* values = out.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      encoder_.embed(spans, values);
    }
    return out;
  }

 private:
  HeldBuffers held_;
  ThreadPool pool_;
  Encoder encoder_;
};

}  // namespace

void register_encoder(py::module_& m) {
  py::class_<PyEncoder>(m, "Encoder")
      .def(py::init<const py::dict&, const py::dict&, int>(), py::arg("spec"), py::arg("tensors"),
           py::kw_only(), py::arg("threads"))
      .def("embed", &PyEncoder::embed, py::arg("texts"),
           "int32 arrays of ids -> float32 [texts, hidden], one batch. One call at a time.");
}

}  // namespace musespark

// _linalg: an extension of its own, so that a process that never calibrates loads no BLAS. Built
// where Eigen and OpenBLAS are found (cmake/Dependencies.cmake).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "base/errors.h"
#include "errors_to_python.h"
#include "linalg/factor.h"

namespace py = pybind11;

namespace musespark {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

Floats factor(const Floats& products, double damping) {
  if (products.ndim() != 2 || products.shape(0) != products.shape(1) || products.shape(0) < 1) {
    throw InvalidRequest("[calibrate] products must be square, float32 [n, n]");
  }
  const py::ssize_t n = products.shape(0);
  Floats out({n, n});
  float* to = out.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    factor_products(products.data(), n, damping, to);
  }
  return out;
}

}  // namespace
}  // namespace musespark

PYBIND11_MODULE(_linalg, m) {
  m.doc() = "Linear algebra for calibration. Internal: musespark.convert uses it.";
  py::register_local_exception_translator(musespark::error_to_python);
  m.def("factor", &musespark::factor, py::arg("products").noconvert(), py::kw_only(),
        py::arg("damping"),
        "float32 products [n, n], upper triangle -> factor float32 [n, n] as _core.pack takes it;\n"
        "see csrc/linalg/factor.h.");
}

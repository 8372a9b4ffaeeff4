// _core.testing: the rowwise kernels of every level, one row per call.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

// A contiguous float32 row; `out` is written where it lies, so nothing may be converted.
using Row = py::array_t<float, py::array::c_style>;

const RowwiseKernels& level(const std::string& isa) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa == isa_name(static_cast<Isa>(i))) return kernel_table(static_cast<Isa>(i)).rowwise;
  }
  throw InvalidRequest("no instruction set is called " + isa);
}

// The levels that this machine runs and that have kernels, best first.
std::vector<std::string> kernel_levels() {
  std::vector<std::string> names;
  for (const IsaStatus& status : isa_report()) {
    if (!status.present) continue;
    try {
      kernel_table(status.isa);
    } catch (const Error&) {
      continue;  // a level without a table of its own
    }
    names.emplace_back(isa_name(status.isa));
  }
  return names;
}

std::int64_t same_size(const Row& x, const Row& y) {
  if (x.size() != y.size()) throw InvalidRequest("rows of different sizes");
  return x.size();
}

const float* data_or_null(const std::optional<Row>& x, std::int64_t n) {
  if (!x) return nullptr;
  if (x->size() != n) throw InvalidRequest("rows of different sizes");
  return x->data();
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "gelu") return Activation::gelu;
  if (name == "relu") return Activation::relu;
  if (name == "relu2") return Activation::relu2;
  if (name == "quick_gelu") return Activation::quick_gelu;
  throw InvalidRequest("no activation is called " + name);
}

void register_norms(py::module_& m) {
  m.def("rms_norm",
        [](const std::string& isa, const Row& x, const std::optional<Row>& w, float eps, Row out) {
          const FloatEnv env;
          const std::int64_t n = same_size(x, out);
          level(isa).rms_norm(x.data(), data_or_null(w, n), eps, n, out.mutable_data());
        });
  m.def("layer_norm", [](const std::string& isa, const Row& x, const std::optional<Row>& w,
                         const std::optional<Row>& b, float eps, Row out) {
    const FloatEnv env;
    const std::int64_t n = same_size(x, out);
    level(isa).layer_norm(x.data(), data_or_null(w, n), data_or_null(b, n), eps, n,
                          out.mutable_data());
  });
}

void register_elements(py::module_& m) {
  m.def("add", [](const std::string& isa, const Row& a, const Row& b, Row out) {
    const FloatEnv env;
    same_size(a, b);
    level(isa).add(a.data(), b.data(), same_size(a, out), out.mutable_data());
  });
  m.def("scale", [](const std::string& isa, const Row& x, float s, Row out) {
    const FloatEnv env;
    level(isa).scale(x.data(), s, same_size(x, out), out.mutable_data());
  });
  m.def("activate", [](const std::string& isa, const std::string& kind, const Row& x, Row out) {
    const FloatEnv env;
    level(isa).activate(activation_of(kind), x.data(), same_size(x, out), out.mutable_data());
  });
  m.def("activate_mul", [](const std::string& isa, const std::string& kind, const Row& gate,
                           const Row& up, Row out) {
    const FloatEnv env;
    same_size(gate, up);
    level(isa).activate_mul(activation_of(kind), gate.data(), up.data(), same_size(gate, out),
                            out.mutable_data());
  });
  m.def("sigmoid_mul", [](const std::string& isa, const Row& x, const Row& gate, Row out) {
    const FloatEnv env;
    same_size(x, gate);
    level(isa).sigmoid_mul(x.data(), gate.data(), same_size(x, out), out.mutable_data());
  });
  m.def("softcap", [](const std::string& isa, const Row& x, float mult, float cap, Row out) {
    const FloatEnv env;
    level(isa).softcap(x.data(), mult, cap, same_size(x, out), out.mutable_data());
  });
  m.def("row_max", [](const std::string& isa, const Row& x) {
    const FloatEnv env;
    return py::array_t<float>(1, std::array{level(isa).row_max(x.data(), x.size())}.data());
  });
  m.def("exp_sum", [](const std::string& isa, const Row& x, float max, std::optional<Row> out) {
    const FloatEnv env;
    float* to = out ? out->mutable_data() : nullptr;
    if (out) same_size(x, *out);
    return py::array_t<float>(1,
                              std::array{level(isa).exp_sum(x.data(), max, x.size(), to)}.data());
  });
  m.def("exp_moments", [](const std::string& isa, const Row& x, float max) {
    const FloatEnv env;
    py::array_t<float> sums(2);
    level(isa).exp_moments(x.data(), max, x.size(), sums.mutable_data());
    return sums;
  });
  m.def("lane_maxima", [](const std::string& isa, const Row& x, Row out) {
    const FloatEnv env;
    if (out.size() != kMaximaLanes) throw InvalidRequest("lane_maxima: a value for each lane");
    level(isa).lane_maxima(x.data(), x.size(), out.mutable_data());
  });
  m.def("collect", [](const std::string& isa, const Row& x, float least, Row out) {
    const FloatEnv env;
    return level(isa).collect(x.data(), least, same_size(x, out), out.mutable_data());
  });
}

void register_rotations(py::module_& m) {
  m.def("rope",
        [](const std::string& isa, Row x, const Row& cos, const Row& sin, bool interleaved) {
          const FloatEnv env;
          const std::int64_t half = same_size(cos, sin);
          if (x.size() < 2 * half) throw InvalidRequest("rope: the row is shorter than its pairs");
          level(isa).rope(x.mutable_data(), cos.data(), sin.data(), half, interleaved ? 1 : 0);
        });
  m.def("rotate", [](const std::string& isa, Row x, bool inverse) {
    const FloatEnv env;
    if (x.size() % 16 != 0 || x.size() == 0 || x.size() > 512) {
      throw InvalidRequest("rotate: the size must be a multiple of 16 up to 512");
    }
    level(isa).rotate(x.mutable_data(), x.size(), inverse ? 1 : 0);
  });
}

}  // namespace

void register_kernels_rowwise(py::module_& m) {
  py::module_ testing = m.def_submodule("testing");
  testing.def("kernel_levels", &kernel_levels);
  register_norms(testing);
  register_elements(testing);
  register_rotations(testing);
}

}  // namespace musespark

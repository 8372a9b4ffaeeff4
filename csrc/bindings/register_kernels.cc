// _core.testing: the matmul kernels of every level, and the level in use.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/errors.h"
#include "formats/weights_codec.h"
#include "kernels/dispatch.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

const KernelTable& table_of(const std::string& name) {
  for (const IsaStatus& status : isa_report()) {
    if (name == isa_name(status.isa)) return kernel_table(status.isa);
  }
  throw InvalidRequest("isa: '" + name + "' is no level");
}

// The levels of this machine that have a kernel table, best first.
std::vector<std::string> kernel_levels() {
  std::vector<std::string> names;
  for (const IsaStatus& status : isa_report()) {
    if (status.present && has_kernel_table(status.isa)) names.emplace_back(isa_name(status.isa));
  }
  return names;
}

// Activations as quantize_rows leaves them, in memory of exactly the size the contract promises.
struct Activations {
  AlignedBuffer q, scale, bias;
  QuantizedRows rows;

  Activations(std::int64_t m, std::int64_t k) {
    const std::int64_t kp = (k + kActGroup - 1) / kActGroup * kActGroup;
    const auto groups = static_cast<std::size_t>(m * kp / kActGroup);
    q = AlignedBuffer(static_cast<std::size_t>(m * kp));
    scale = AlignedBuffer(groups * sizeof(float));
    bias = AlignedBuffer(groups * sizeof(std::int32_t));
    rows = {q.as<std::int8_t>(), scale.as<float>(), bias.as<std::int32_t>(), m, kp};
  }
};

void check_2d(const py::array& a, const char* what) {
  if (a.ndim() != 2) throw InvalidRequest(std::string(what) + ": not 2-D");
}

py::tuple quantize_rows(const Array<float>& x, const std::string& isa) {
  check_2d(x, "quantize_rows: x");
  const std::int64_t m = x.shape(0), k = x.shape(1);
  Activations a(m, k);
  table_of(isa).quantize_rows(x.data(), k, m, k, &a.rows);
  const std::int64_t kp = a.rows.cols, groups = kp / kActGroup;
  return py::make_tuple(Array<std::int8_t>({m, kp}, a.rows.q),
                        Array<float>({m, groups}, a.rows.scale),
                        Array<std::int32_t>({m, groups}, a.rows.bias));
}

// A matrix and an input, ready to be multiplied again and again.
class MatmulCase {
 public:
  MatmulCase(const std::string& format, const py::buffer& packed, std::int64_t rows,
             const Array<float>& x)
      : format_(weight_format_from_name(format)), rows_(rows), m_(x.shape(0)), k_(x.shape(1)),
        x_(static_cast<std::size_t>(x.size()) * sizeof(float)),
        activations_(x.shape(0), x.shape(1)) {
    check_2d(x, "matmul: x");
    const py::buffer_info info = packed.request();
    const auto size = static_cast<std::size_t>(info.size * info.itemsize);
    weights_ = AlignedBuffer(size);
    std::copy_n(static_cast<const std::byte*>(info.ptr), size, weights_.data());
    w_ = packed_matrix(format_, rows, k_, weights_.data(), size, "matmul");
    std::copy_n(x.data(), x.size(), x_.as<float>());
  }

  std::int64_t row_blocks() const { return (rows_ + kRowBlock - 1) / kRowBlock; }

  // out[m][ldo]; row blocks [begin, end) are computed, everything else keeps `fill`.
  Array<float> run(const std::string& isa, std::int64_t begin, std::int64_t end, std::int64_t ldo,
                   float fill) {
    end = end < 0 ? row_blocks() : end;
    ldo = ldo < 0 ? rows_ : ldo;
    if (begin < 0 || begin > end || end > row_blocks()) throw InvalidRequest("matmul: row blocks");
    if (ldo < rows_) throw InvalidRequest("matmul: ldo");
    const KernelTable& table = table_of(isa);
    table.quantize_rows(x_.as<float>(), k_, m_, k_, &activations_.rows);
    AlignedBuffer out(static_cast<std::size_t>(m_ * ldo) * sizeof(float));
    std::fill_n(out.as<float>(), m_ * ldo, fill);
    AlignedBuffer scratch = make_scratch();
    multiply(table, begin, end, out.as<float>(), ldo, scratch);
    return Array<float>({m_, ldo}, out.as<float>());
  }

 private:
  AlignedBuffer make_scratch() const {
    return AlignedBuffer(static_cast<std::size_t>(matmul_scratch_bytes(format_, k_, m_)));
  }

  void multiply(const KernelTable& table, std::int64_t begin, std::int64_t end, float* out,
                std::int64_t ldo, AlignedBuffer& scratch) const {
    MatmulArgs args{w_, &activations_.rows, x_.as<float>(), k_,  m_,
                    begin, end, out, ldo, scratch.data()};
    if (begin < end) table.matmul(&args);
  }

  WeightFormat format_;
  std::int64_t rows_, m_, k_;
  AlignedBuffer weights_, x_;
  PackedMatrix w_{};
  Activations activations_;
};

}  // namespace

void register_kernels(py::module_& m) {
  m.def("kernel_level", [] { return isa_name(kernels().isa); },
        "The level whose kernels are in use.");
  auto testing = m.def_submodule("testing");
  testing.def("kernel_levels", &kernel_levels,
              "The levels of this machine that have a kernel table, best first.");
  testing.def("quantize_rows", &quantize_rows, py::arg("x"), py::kw_only(), py::arg("isa"),
              "(q int8 [M, Kp], scale f32 [M, Kp/64], bias int32 [M, Kp/64]) of x f32 [M, K].");
  py::class_<MatmulCase>(testing, "MatmulCase")
      .def(py::init<const std::string&, const py::buffer&, std::int64_t, const Array<float>&>(),
           py::arg("format"), py::arg("packed"), py::arg("rows"), py::arg("x"),
           "A packed rows x K matrix and an input f32 [M, K].")
      .def("run", &MatmulCase::run, py::kw_only(), py::arg("isa"), py::arg("begin") = 0,
           py::arg("end") = -1, py::arg("ldo") = -1, py::arg("fill") = 0.0f,
           "x . W^T f32 [M, ldo] over row blocks [begin, end); the rest holds `fill`.");
}

}  // namespace musespark

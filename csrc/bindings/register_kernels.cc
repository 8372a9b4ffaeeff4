// _core.testing: the matmul kernels of every level, and the level in use.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/errors.h"
#include "base/thread_pool.h"
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

// Memory that ends where an inaccessible page begins, so that a kernel that reads or writes past
// what the contract gives it faults. Sizes that are no multiple of 64 start unaligned to 64.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t size) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t pages = (size + page - 1) / page;
    mapped_ = (pages + 1) * page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw MemoryBudgetExceeded("guarded buffer");
    std::byte* guard = static_cast<std::byte*>(base_) + pages * page;
    mprotect(guard, page, PROT_NONE);
    data_ = guard - size;
  }
  ~GuardedBuffer() { munmap(base_, mapped_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  std::byte* data() { return data_; }
  std::size_t size() const { return size_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::size_t size_, mapped_ = 0;
  void* base_ = nullptr;
  std::byte* data_ = nullptr;
};

// Activations as quantize_rows leaves them, in memory of exactly the size the contract promises;
// rows of q lie apart as a caller may have them.
struct Activations {
  GuardedBuffer q, scale, bias, half_bias;
  QuantizedRows rows;

  Activations(std::int64_t m, std::int64_t k, std::int64_t group)
      : Activations(m, (k + 63) / 64 * 64, group, 0) {}

 private:
  Activations(std::int64_t m, std::int64_t kp, std::int64_t group, int)
      : q(static_cast<std::size_t>((m - 1) * (kp + 64) + kp)),
        scale(static_cast<std::size_t>(m * kp / kActGroup) * sizeof(float)),
        bias(static_cast<std::size_t>(m * kp / kActGroup) * sizeof(std::int32_t)),
        half_bias(2 * bias.size()),
        rows{q.as<std::int8_t>(),
             scale.as<float>(),
             bias.as<std::int32_t>(),
             half_bias.as<std::int32_t>(),
             m,
             kp,
             kp + 64,
             group} {}
};

void check_2d(const py::array& a, const char* what) {
  if (a.ndim() != 2) throw InvalidRequest(std::string(what) + ": not 2-D");
}

py::tuple quantize_rows(const Array<float>& x, std::int64_t group, const std::string& isa) {
  check_2d(x, "quantize_rows: x");
  const std::int64_t m = x.shape(0), k = x.shape(1);
  if (group != kActGroup && group != kBlockQ4 && group != kBlockQ8Wide) {
    throw InvalidRequest("quantize_rows: group " + std::to_string(group) +
                         " is not 64, 256 or 1024");
  }
  Activations a(m, k, group);
  GuardedBuffer from(static_cast<std::size_t>(x.size()) * sizeof(float));
  std::copy_n(x.data(), x.size(), from.as<float>());
  table_of(isa).quantize_rows(from.as<float>(), k, m, k, &a.rows);
  const std::int64_t kp = a.rows.cols, groups = kp / kActGroup;
  Array<std::int8_t> q({m, kp});
  for (std::int64_t i = 0; i < m; ++i) {
    std::copy_n(a.rows.q + i * a.rows.stride, kp, q.mutable_data(i, 0));
  }
  return py::make_tuple(q, Array<float>({m, groups}, a.rows.scale),
                        Array<std::int32_t>({m, groups}, a.rows.bias),
                        Array<std::int32_t>({m, 2 * groups}, a.rows.half_bias));
}

// x . W^T f32 [M, ldo] over row blocks [begin, end); the rest of the result holds `fill`.
Array<float> matmul(const std::string& format_name, const py::buffer& packed, std::int64_t rows,
                    const Array<float>& x, const std::string& isa, std::int64_t begin,
                    std::int64_t end, std::int64_t ldo, float fill,
                    const std::optional<Array<float>>& bias) {
  check_2d(x, "matmul: x");
  const WeightFormat format = weight_format_from_name(format_name);
  const std::int64_t m = x.shape(0), k = x.shape(1), blocks = (rows + kRowBlock - 1) / kRowBlock;
  end = end < 0 ? blocks : end;
  ldo = ldo < 0 ? rows : ldo;
  if (m < 1 || begin < 0 || begin > end || end > blocks || ldo < rows) {
    throw InvalidRequest("matmul: row blocks, ldo or rows of x out of range");
  }
  const py::buffer_info info = packed.request();
  const auto size = static_cast<std::size_t>(info.size * info.itemsize);
  GuardedBuffer weights(size);
  std::copy_n(static_cast<const std::byte*>(info.ptr), size, weights.data());
  GuardedBuffer input(static_cast<std::size_t>(x.size()) * sizeof(float));
  std::copy_n(x.data(), x.size(), input.as<float>());
  GuardedBuffer added(static_cast<std::size_t>(rows) * sizeof(float));
  if (bias) {
    if (bias->size() != rows) throw InvalidRequest("matmul: a bias of another size");
    std::copy_n(bias->data(), rows, added.as<float>());
  }
  const KernelTable& table = table_of(isa);
  Activations activations(m, k, act_scale_cols(format));
  table.quantize_rows(input.as<float>(), k, m, k, &activations.rows);
  // The last row of the result ends with its last output: rows of `ldo`, the last one of `rows`.
  GuardedBuffer out(static_cast<std::size_t>((m - 1) * ldo + rows) * sizeof(float));
  std::fill_n(out.as<float>(), (m - 1) * ldo + rows, fill);
  const auto scratch_bytes = static_cast<std::size_t>(matmul_scratch_bytes(format, k, m));
  GuardedBuffer scratch((scratch_bytes + 63) / 64 * 64);
  std::fill_n(scratch.data(), scratch.size(), std::byte{0xff});
  const MatmulArgs args{packed_matrix(format, rows, k, weights.data(), size, "matmul"),
                        &activations.rows,
                        input.as<float>(),
                        k,
                        m,
                        begin,
                        end,
                        out.as<float>(),
                        ldo,
                        scratch.data(),
                        bias ? added.as<float>() : nullptr};
  if (begin < end) table.matmul(&args);
  Array<float> result({m, ldo});
  std::fill_n(result.mutable_data(), m * ldo, fill);
  std::copy_n(out.as<float>(), (m - 1) * ldo + rows, result.mutable_data());
  return result;
}

// `copies` matrices of random codes after one another; scales and float weights are ordinary
// numbers.
AlignedBuffer random_weights(WeightFormat format, const WeightLayout& layout, std::int64_t copies) {
  AlignedBuffer weights(static_cast<std::size_t>(layout.bytes * copies));
  std::uint32_t state = 1;
  for (std::int64_t b = 0; b < layout.row_blocks * copies; ++b) {
    std::uint8_t* block = weights.as<std::uint8_t>() + b * layout.row_block_bytes;
    std::fill_n(block, layout.row_block_bytes, std::uint8_t{0x3f});
    if (!is_quantized(format)) continue;
    for (std::int64_t i = layout.codes_offset; i < layout.row_block_bytes; ++i) {
      state = state * 1664525u + 1013904223u;
      block[i] = static_cast<std::uint8_t>(state >> 24);
    }
    std::fill_n(reinterpret_cast<std::uint16_t*>(block + layout.block_offset),
                layout.blocks * kRowBlock, std::uint16_t{0x2c00});
  }
  return weights;
}

// Seconds of each of `repeats` products of M rows with `copies` matrices of N x K random codes, cut
// into pieces of `grain` row blocks for `threads` threads.
std::vector<double> time_matmul(const std::string& format_name, std::int64_t rows,
                                std::int64_t cols, std::int64_t m, const std::string& isa,
                                int threads, int repeats, std::int64_t copies, std::int64_t grain) {
  const WeightFormat format = weight_format_from_name(format_name);
  const WeightLayout layout = weight_layout(format, rows, cols);
  const KernelTable& table = table_of(isa);
  AlignedBuffer weights = random_weights(format, layout, copies);
  std::vector<float> x(static_cast<std::size_t>(m * cols));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 2001) - 1000.0f;
  Activations activations(m, cols, act_scale_cols(format));
  table.quantize_rows(x.data(), cols, m, cols, &activations.rows);
  AlignedBuffer out(static_cast<std::size_t>(m * rows) * sizeof(float));
  std::vector<AlignedBuffer> scratch;
  for (int i = 0; i < threads; ++i) {
    scratch.emplace_back(static_cast<std::size_t>(matmul_scratch_bytes(format, cols, m)));
  }
  std::vector<double> seconds;
  const py::gil_scoped_release release;
  ThreadPool pool(threads);
  const std::int64_t pieces = (layout.row_blocks + grain - 1) / grain;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (std::int64_t copy = 0; copy < copies; ++copy) {
      const PackedMatrix w{weights.as<std::uint8_t>() + copy * layout.bytes, layout.row_block_bytes,
                           rows, cols, format};
      pool.run(pieces, [&](std::int64_t piece, int worker) {
        const std::int64_t begin = piece * grain;
        const MatmulArgs args{w,
                              &activations.rows,
                              x.data(),
                              cols,
                              m,
                              begin,
                              std::min(begin + grain, layout.row_blocks),
                              out.as<float>(),
                              rows,
                              scratch[static_cast<std::size_t>(worker)].data()};
        table.matmul(&args);
      });
    }
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    seconds.push_back(passed.count());
  }
  return seconds;
}

}  // namespace

void register_kernels(py::module_& m) {
  m.def(
      "kernel_level", [] { return isa_name(kernels().isa); },
      "The level whose kernels are in use.");
  auto testing = m.def_submodule("testing");
  testing.def("kernel_levels", &kernel_levels,
              "The levels of this machine that have a kernel table, best first.");
  testing.def("quantize_rows", &quantize_rows, py::arg("x"), py::arg("group"), py::kw_only(),
              py::arg("isa"),
              "(q int8 [M, Kp], scale f32 [M, Kp/64], bias int32 [M, Kp/64], half_bias int32 [M,\n"
              "Kp/32]) of x f32 [M, K].");
  testing.def("matmul", &matmul, py::arg("format"), py::arg("packed"), py::arg("rows"),
              py::arg("x"), py::kw_only(), py::arg("isa"), py::arg("begin") = 0,
              py::arg("end") = -1, py::arg("ldo") = -1, py::arg("fill") = 0.0f,
              py::arg("bias") = py::none(),
              "x . W^T f32 [M, ldo] of packed rows x K weights and x f32 [M, K], over row blocks\n"
              "[begin, end); the rest holds `fill`. Every buffer ends at an inaccessible page.");
  testing.def("time_matmul", &time_matmul, py::arg("format"), py::arg("rows"), py::arg("cols"),
              py::arg("m"), py::kw_only(), py::arg("isa"), py::arg("threads"), py::arg("repeats"),
              py::arg("copies"), py::arg("grain"),
              "Seconds of each of `repeats` products of m rows with `copies` matrices after one\n"
              "another, cut into pieces of `grain` row blocks.");
}

}  // namespace musespark

// _core.testing: operations by themselves: a layer of experts, as benchmarks time it, and what is
// done to pages of thoughts.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "base/thread_pool.h"
#include "formats/kv_page_codec.h"
#include "formats/weights_codec.h"
#include "kernels/dispatch.h"
#include "kv_formats.h"
#include "ops/choose_rows.h"
#include "ops/experts.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

struct Widths {
  WeightFormat format;
  std::int64_t hidden, intermediate;
};

Matrix matrix_at(const Bytes& bytes, WeightFormat format, std::int64_t rows, std::int64_t cols,
                 std::int64_t index, const char* what) {
  const std::int64_t nbytes = weight_layout(format, rows, cols).bytes;
  if (bytes.size() % nbytes != 0 || (index + 1) * nbytes > bytes.size()) {
    throw InvalidRequest(std::string(what) + ": " + std::to_string(bytes.size()) + " bytes, each " +
                         std::to_string(nbytes));
  }
  return {packed_matrix(format, rows, cols, bytes.data() + index * nbytes,
                        static_cast<std::size_t>(nbytes), what),
          nullptr};
}

Expert expert_at(const Bytes& gate, const Bytes& up, const Bytes& down, const Widths& w,
                 std::int64_t index) {
  return {matrix_at(gate, w.format, w.intermediate, w.hidden, index, "gate"),
          matrix_at(up, w.format, w.intermediate, w.hidden, index, "up"),
          matrix_at(down, w.format, w.hidden, w.intermediate, index, "down")};
}

// The rows of x, as floats and quantized.
struct Input {
  explicit Input(const Floats& x, const KernelTable& kernels) {
    const std::int64_t m = x.shape(0), cols = x.shape(1);
    Carver measure{nullptr};
    measure.rows(m, cols, true, 3);
    buffer = AlignedBuffer(measure.used);
    Carver carver{buffer.data()};
    rows = carver.rows(m, cols, true, 3).view(m, cols, {true, true, true, true}, true);
    for (std::int64_t r = 0; r < m; ++r) {
      std::copy_n(x.data(r, 0), cols, rows.x + r * rows.ldx);
    }
    for (std::int64_t r = 0; r < m; ++r) rows.quantize(kernels, r, rows.x + r * rows.ldx);
  }
  AlignedBuffer buffer;
  Rows rows;
};

template <class Run>
std::vector<double> timed(int repeats, const Run& run) {
  const py::gil_scoped_release release;
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    seconds.push_back(passed.count());
  }
  return seconds;
}

std::int64_t scratch_bytes(const Widths& w, std::int64_t rows) {
  return std::max(gated_scratch_bytes(w.format, w.hidden, rows),
                  linear_scratch_bytes(w.format, w.intermediate, rows));
}

std::vector<double> time_experts(const std::string& format, std::int64_t intermediate,
                                 std::int64_t chosen, const Floats& x, const Bytes& router,
                                 std::int64_t experts, const Bytes& gate, const Bytes& up,
                                 const Bytes& down, int threads, int repeats) {
  const Widths widths{weight_format_from_name(format), x.shape(1), intermediate};
  Experts layer;
  layer.hidden = layer.width = widths.hidden;
  layer.intermediate = intermediate;
  layer.router.matrix = matrix_at(router, widths.format, experts, widths.hidden, 0, "router");
  layer.router.chosen = chosen;
  layer.router.renormalize = true;
  for (std::int64_t i = 0; i < experts; ++i) {
    layer.list.push_back(expert_at(gate, up, down, widths, i));
  }
  layer.in_needs.add(layer.list[0].up);
  layer.down_needs.add(layer.list[0].down);
  const KernelTable& table = kernels();
  const Input input(x, table);
  ThreadPool pool(threads);
  Jobs jobs(pool);
  jobs.reserve_scratch(scratch_bytes(widths, x.shape(0)));
  AlignedBuffer out(static_cast<std::size_t>(x.shape(0) * RowsBuffer::padded(widths.hidden) * 4));
  ExpertsRunner runner;
  return timed(repeats, [&] { runner.run(jobs, table, layer, input.rows, out.as<float>()); });
}

std::vector<double> time_mlp(const std::string& format, std::int64_t intermediate, const Floats& x,
                             const Bytes& gate, const Bytes& up, const Bytes& down, int threads,
                             int repeats) {
  const Widths widths{weight_format_from_name(format), x.shape(1), intermediate};
  const Expert mlp = expert_at(gate, up, down, widths, 0);
  const KernelTable& table = kernels();
  const std::int64_t m = x.shape(0);
  const Input input(x, table);
  ThreadPool pool(threads);
  Jobs jobs(pool);
  jobs.reserve_scratch(scratch_bytes(widths, m));
  Carver measure{nullptr};
  measure.rows(m, intermediate, true, 3);
  AlignedBuffer room(measure.used);
  Carver carver{room.data()};
  Needs needs;
  needs.add(mlp.down);
  const Rows inner = carver.rows(m, intermediate, true, 1).view(m, intermediate, needs, false);
  const std::int64_t ld = RowsBuffer::padded(widths.hidden);
  AlignedBuffer out(static_cast<std::size_t>(m * ld * 4));
  return timed(repeats, [&] {
    const GatedOutput gated{&input.rows, &mlp.gate, &mlp.up, inner};
    gated_linear(jobs, table, {}, std::span(&gated, 1));
    const LinearOutput output{&inner, &mlp.down, out.as<float>(), ld};
    linear(jobs, table, std::span(&output, 1));
  });
}

std::vector<std::int32_t> choose_rows_of(const Floats& keys, const Floats& queries,
                                         std::int64_t keep) {
  if (keys.ndim() != 2 || queries.ndim() != 3 || queries.shape(2) != keys.shape(1)) {
    throw InvalidRequest("keys [rows][d] and queries [count][group][d] do not fit each other");
  }
  const FloatEnv environment;
  return choose_rows({keys.shape(0), keys.shape(1), keys.data(), queries.shape(0), queries.shape(1),
                      queries.data(), keep});
}

py::tuple page_rows(const std::string& format, std::int64_t d, const Bytes& page, bool sealed) {
  const auto kv = find_kv_format(format);
  if (!kv || page.size() != (sealed ? sealed_page_bytes(*kv, d) : open_page_bytes(*kv, d))) {
    throw InvalidRequest("page: " + std::to_string(page.size()) + " bytes of " + format);
  }
  Floats k({std::int64_t{kPageTokens}, d}), v({std::int64_t{kPageTokens}, d});
  if (!sealed) {
    decode_open(*kv, d, page.data(), k.mutable_data(), v.mutable_data());
    return py::make_tuple(k, v);
  }
  std::vector<float> mean(static_cast<std::size_t>(d));
  decode_sealed(*kv, d, page.data(), k.mutable_data(), mean.data(), v.mutable_data());
  for (std::int64_t i = 0; i < k.size(); ++i) k.mutable_data()[i] += mean[i % d];
  return py::make_tuple(k, v);
}

}  // namespace

void register_ops_testing(py::module_& m) {
  auto testing = m.def_submodule("testing");
  testing.def("choose_rows", &choose_rows_of, py::arg("keys"), py::arg("queries"), py::arg("keep"),
              "Indices of the rows that stay; see csrc/ops/choose_rows.h.");
  testing.def("page_rows", &page_rows, py::arg("format"), py::arg("d"), py::arg("page"),
              py::kw_only(), py::arg("sealed"), "Keys and values [64][d] of one slab's bytes.");
  testing.def("time_experts", &time_experts, py::arg("format"), py::kw_only(),
              py::arg("intermediate"), py::arg("chosen"), py::arg("x"), py::arg("router"),
              py::arg("experts"), py::arg("gate"), py::arg("up"), py::arg("down"),
              py::arg("threads"), py::arg("repeats"),
              "Seconds of each of `repeats` runs of a layer of experts over x f32 [rows, hidden];\n"
              "gate, up and down: the packed matrices of all experts, one after another.");
  testing.def("time_mlp", &time_mlp, py::arg("format"), py::kw_only(), py::arg("intermediate"),
              py::arg("x"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("threads"),
              py::arg("repeats"), "The same for one gated MLP without a router.");
}

}  // namespace musespark

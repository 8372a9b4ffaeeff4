// _core.Calibrator: runs a model over token chunks and sums up the inputs of its matrices.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "calibrate/input_sums.h"
#include "dict_reader.h"
#include "model/text_model.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

constexpr std::pair<const char*, InputOf> kInputs[] = {
    {"attn", InputOf::attn},
    {"o", InputOf::o},
    {"mlp", InputOf::mlp},
    {"down", InputOf::down},
    {"expert", InputOf::expert},
    {"expert_down", InputOf::expert_down},
    {"shared_down", InputOf::shared_down},
    {"expert_out", InputOf::expert_out},
    {"head", InputOf::head},
};

InputKey key_of(const std::string& what, std::int64_t layer, std::int64_t expert) {
  for (const auto& [name, input] : kInputs) {
    if (what == name) return {input, layer, expert};
  }
  DictReader::fail("what", "'" + what + "'", "the name of an input");
}

class PyCalibrator {
 public:
  PyCalibrator(const py::object& spec, const py::dict& tensors, int threads) : pool_(threads) {
    ModelSpec model_spec = spec_from_python(spec);
    const auto views = tensors_from_python(tensors, buffers_);
    const py::gil_scoped_release unlocked;
    const KvChoice floats = same_for_all(model_spec, KvFormat::f32);
    model_ = std::make_unique<TextModel>(std::move(model_spec), views, pool_, floats);
    sums_ = std::make_unique<InputSums>(pool_);
  }

  void want(const std::string& what, std::int64_t layer, std::int64_t expert, std::int64_t cols,
            bool products) {
    sums_->want(key_of(what, layer, expert), cols, products);
  }

  void run(const py::array_t<std::int32_t, py::array::c_style>& tokens) {
    if (tokens.ndim() != 1 || tokens.size() < 1) {
      DictReader::fail("tokens", std::to_string(tokens.size()), "at least one, in one dimension");
    }
    const std::vector<std::int32_t> ids(tokens.data(), tokens.data() + tokens.size());
    const py::gil_scoped_release unlocked;
    forward(ids);
  }

  py::tuple take(const std::string& what, std::int64_t layer, std::int64_t expert) {
    auto sum = std::make_unique<InputSum>(sums_->take(key_of(what, layer, expert)));
    const py::array_t<double> squares(sum->cols, sum->squares.data());
    py::object products = py::none();
    const std::int64_t rows = sum->rows, n = sum->cols;
    if (sum->products.size() > 0) {
      float* values = sum->products.as<float>();
      const py::capsule owner(sum.get(), [](void* p) { delete static_cast<InputSum*>(p); });
      sum.release();
      products = py::array_t<float>({n, n}, values, owner);
    }
    return py::make_tuple(rows, squares, products);
  }

 private:
  // One step of a new sequence, ended after the last layer that somebody wants and before logits
  // are made.
  void forward(const std::vector<std::int32_t>& ids) {
    const auto layers = static_cast<std::int64_t>(model_->spec().layers.size());
    const std::int64_t stop = std::min(sums_->last_layer(layers) + 1, layers);
    const auto count = static_cast<std::int64_t>(ids.size());
    PagePool pages(model_->kv_layout(), std::int64_t{1} << 40);
    Sequence sequence(pages);
    const bool original = count <= model_->original_context();
    const StepSpan span{&sequence, ids.data(), count, StepSpan::Logits::all, original, nullptr};
    std::int64_t checks = 0;
    const StepControl control{[&] { return checks++ == stop; }, sums_.get()};
    model_->forward(std::span(&span, 1), control, nullptr);
  }

  HeldBuffers buffers_;
  ThreadPool pool_;
  std::unique_ptr<TextModel> model_;
  std::unique_ptr<InputSums> sums_;
};

}  // namespace

void register_calibrate(py::module_& m) {
  py::class_<PyCalibrator>(
      m, "Calibrator",
      "Runs a text model over chunks of tokens, one sequence each, and sums up what its matrices\n"
      "read. `spec` and `tensors` as Engine takes them. For one thread at a time.")
      .def(py::init<const py::object&, const py::dict&, int>(), py::arg("spec"), py::arg("tensors"),
           py::kw_only(), py::arg("threads"))
      .def("want", &PyCalibrator::want, py::arg("what"), py::arg("layer"), py::arg("expert"),
           py::arg("cols"), py::kw_only(), py::arg("products"),
           "Sums an input from now on: attn, o, mlp, down, expert, expert_down, shared_down,\n"
           "expert_out (csrc/ops/tap.h) of a layer, or head.")
      .def("run", &PyCalibrator::run, py::arg("tokens"),
           "Runs int32 [n], not longer than the context, as far as somebody wants an input.")
      .def(
          "take", &PyCalibrator::take, py::arg("what"), py::arg("layer"), py::arg("expert"),
          "(rows seen, sums of squares float64 [cols], sums of products float32 [cols, cols] with\n"
          "the upper triangle filled, or None), and stops summing it.");
}

}  // namespace musespark

// _core.Calibrator: runs a model over token chunks and sums up the inputs of its matrices.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "calibrate/input_sums.h"
#include "calibrate/kv_errors.h"
#include "dict_reader.h"
#include "kv_formats.h"
#include "model/prepared.h"
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
  PyCalibrator(const py::object& spec, const py::dict& tensors, int threads, const std::string& kv)
      : pool_(threads) {
    ModelSpec model_spec = spec_from_python(spec);
    const auto views = tensors_from_python(tensors, buffers_);
    const py::gil_scoped_release unlocked;
    check_spec(model_spec);
    const KvChoice formats = kv_choice(kv, model_spec);
    floats_ = formats == same_for_all(model_spec, KvFormat::f32);
    model_ = std::make_unique<TextModel>(std::move(model_spec), views, pool_, formats);
    sums_ = std::make_unique<InputSums>(pool_);
    errors_ = std::make_unique<KvErrors>(pool_, layers());
  }

  void want(const std::string& what, std::int64_t layer, std::int64_t expert, std::int64_t cols,
            bool products) {
    sums_->want(key_of(what, layer, expert), cols, products);
  }

  using Tokens = py::array_t<std::int32_t, py::array::c_style>;

  void run(const Tokens& tokens) {
    const std::vector<std::int32_t> ids = ids_of(tokens);
    const std::int64_t stop = std::min(sums_->last_layer(layers()) + 1, layers());
    const py::gil_scoped_release unlocked;
    Run run(*this, static_cast<std::int64_t>(ids.size()));
    std::int64_t checks = 0;
    run.step(ids, StepSpan::Logits::all, {[&] { return checks++ == stop; }, sums_.get()}, nullptr);
  }

  // Where the cache is f32, what comes before the last tokens is measured.
  py::array_t<float> last_logits(const Tokens& tokens, std::int64_t last) {
    const std::vector<std::int32_t> ids = ids_of(tokens);
    const auto count = static_cast<std::int64_t>(ids.size());
    if (last < 1 || last >= count)
      DictReader::fail("last", std::to_string(last), "1 to tokens - 1");
    py::array_t<float> out({last, model_->spec().vocab});
    float* logits = out.mutable_data();
    const py::gil_scoped_release unlocked;
    Run run(*this, count);
    const std::span<const std::int32_t> all(ids);
    InputTap* tap = floats_ ? errors_.get() : nullptr;
    const auto before = static_cast<std::size_t>(count - last);
    run.step(all.first(before), StepSpan::Logits::none, {{}, tap}, nullptr);
    run.step(all.subspan(before), StepSpan::Logits::all, {}, logits);
    return out;
  }

  // By layer: queries of a head, exact [heads], divergence and error [heads, formats].
  py::list kv_errors() const {
    constexpr auto kFormats = static_cast<py::ssize_t>(kMeasuredFormats.size());
    py::list out;
    for (const auto& layer : errors_->heads()) {
      const auto heads = static_cast<py::ssize_t>(layer.size());
      py::array_t<double> exact(heads), divergence({heads, kFormats}), error({heads, kFormats});
      for (std::size_t h = 0; h < layer.size(); ++h) {
        const auto row = static_cast<py::ssize_t>(h);
        exact.mutable_at(row) = layer[h].exact;
        std::copy_n(layer[h].divergence.data(), kFormats, divergence.mutable_data(row, 0));
        std::copy_n(layer[h].error.data(), kFormats, error.mutable_data(row, 0));
      }
      out.append(py::make_tuple(layer.empty() ? 0 : layer[0].queries, exact, divergence, error));
    }
    return out;
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
  static std::vector<std::int32_t> ids_of(const Tokens& tokens) {
    if (tokens.ndim() != 1 || tokens.size() < 1) {
      DictReader::fail("tokens", std::to_string(tokens.size()), "at least one, in one dimension");
    }
    return {tokens.data(), tokens.data() + tokens.size()};
  }

  std::int64_t layers() const { return static_cast<std::int64_t>(model_->spec().layers.size()); }

  // A new sequence of `count` tokens, a step at a time.
  class Run {
   public:
    Run(PyCalibrator& owner, std::int64_t count)
        : model_(*owner.model_),
          pages_(model_.kv_layout(), std::int64_t{1} << 40),
          sequence_(pages_),
          original_(count <= model_.original_context()) {}

    void step(std::span<const std::int32_t> ids, StepSpan::Logits logits,
              const StepControl& control, float* out) {
      const StepSpan span{&sequence_, ids.data(), static_cast<std::int64_t>(ids.size()),
                          logits,     original_,  nullptr};
      model_.forward(std::span(&span, 1), control, out);
    }

   private:
    TextModel& model_;
    PagePool pages_;
    Sequence sequence_;
    bool original_;
  };

  HeldBuffers buffers_;
  ThreadPool pool_;
  bool floats_ = true;
  std::unique_ptr<TextModel> model_;
  std::unique_ptr<InputSums> sums_;
  std::unique_ptr<KvErrors> errors_;
};

}  // namespace

double divergence_of(const py::array_t<float, py::array::c_style>& exact,
                     const py::array_t<float, py::array::c_style>& other) {
  if (exact.ndim() != 2 || other.ndim() != 2 || exact.shape(0) != other.shape(0) ||
      exact.shape(1) != other.shape(1) || exact.size() == 0) {
    DictReader::fail("other", std::to_string(other.size()) + " numbers", "the shape of exact");
  }
  return mean_divergence(exact.data(), other.data(), exact.shape(0), exact.shape(1));
}

void register_calibrate(py::module_& m) {
  m.def("mean_divergence", &divergence_of, py::arg("exact"), py::arg("other"),
        "Mean over rows of KL(softmax(exact) || softmax(other)) in nats; float32 [rows, vocab].");
  py::class_<PyCalibrator>(
      m, "Calibrator",
      "Runs a text model over chunks of tokens, one sequence each, and sums up what its matrices\n"
      "read. `spec` and `tensors` as Engine takes them. For one thread at a time.")
      .def(py::init<const py::object&, const py::dict&, int, const std::string&>(), py::arg("spec"),
           py::arg("tensors"), py::kw_only(), py::arg("threads"), py::arg("kv") = "f32")
      .def("want", &PyCalibrator::want, py::arg("what"), py::arg("layer"), py::arg("expert"),
           py::arg("cols"), py::kw_only(), py::arg("products"),
           "Sums an input from now on: attn, o, mlp, down, expert, expert_down, shared_down,\n"
           "expert_out (csrc/ops/tap.h) of a layer, or head.")
      .def("run", &PyCalibrator::run, py::arg("tokens"),
           "Runs int32 [n], not longer than the context, as far as somebody wants an input.")
      .def("last_logits", &PyCalibrator::last_logits, py::arg("tokens"), py::arg("last"),
           "float32 [last, vocab]: logits of the last of these tokens, one sequence. Where kv is\n"
           "f32, what formats of keys and values do to those before is measured\n"
           "(csrc/calibrate/kv_errors.h).")
      .def("kv_errors", &PyCalibrator::kv_errors,
           "Of all that was measured, by layer: (queries of a head, exact [heads], divergence and\n"
           "error [heads, 3]: sums over these, for kv8, kv8v4, kv4).")
      .def(
          "take", &PyCalibrator::take, py::arg("what"), py::arg("layer"), py::arg("expert"),
          "(rows seen, sums of squares float64 [cols], sums of products float32 [cols, cols] with\n"
          "the upper triangle filled, or None), and stops summing it.");
}

}  // namespace musespark

// _core.testing: the forward path without the engine, and the KV cache, as pytest needs them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "base/aligned.h"
#include "base/errors.h"
#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "formats/weights_codec.h"
#include "given_from_python.h"
#include "kernels/dispatch.h"
#include "kv_formats.h"
#include "model/adapter.h"
#include "model/prepared.h"
#include "model/text_model.h"
#include "ops/experts.h"
#include "ops/rope.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

StepSpan::Logits logits_mode(const std::string& name) {
  if (name == "none") return StepSpan::Logits::none;
  if (name == "last") return StepSpan::Logits::last;
  if (name == "all") return StepSpan::Logits::all;
  throw InvalidRequest("logits: '" + name + "' is not one of none, last, all");
}

// A sequence that keeps its pool.
struct TestSequence {
  std::shared_ptr<PagePool> pool;
  Sequence seq;
};

// A model with the pool of threads and the copies of tensors it needs (those not 64-byte aligned).
class TestModel {
 public:
  TestModel(const py::object& spec, const py::dict& tensors, int threads, const std::string& kv)
      : pool_(threads) {
    std::map<std::string, TensorView> views;
    for (const auto& [key, value] : tensors) {
      const auto [format, rows, cols, array] =
          value.cast<std::tuple<std::string, std::int64_t, std::int64_t, py::array>>();
      views[key.cast<std::string>()] = {weight_format_from_name(format), rows, cols,
                                        bytes_of(array), static_cast<std::int64_t>(array.nbytes())};
    }
    ModelSpec model_spec = spec_from_python(spec);
    const KvChoice formats = kv_choice(kv, model_spec);
    model_ = std::make_unique<TextModel>(std::move(model_spec), views, pool_, formats);
  }

  using Steps = std::vector<std::tuple<TestSequence*, std::vector<std::int32_t>, std::string>>;

  // An adapter, laid over another or not, for forward(adapters=).
  std::shared_ptr<Adapter> adapter(const py::dict& tensors, std::shared_ptr<Adapter> over) const {
    HeldBuffers held;
    return std::make_shared<Adapter>(model_->spec(), tensors_from_python(tensors, held),
                                     std::move(over));
  }

  // spans: (sequence, tokens, "none" | "last" | "all"). None if it was interrupted, which happens
  // at check number `interrupt_at` (0 is the one before the first layer). adapters, given (as in a
  // request's params): of the spans; empty: none has one. states: of the spans, (layers, skip);
  // what they log comes with the logits then.
  py::object forward(
      const Steps& from, std::optional<int> interrupt_at, const std::vector<Adapter*>& adapters,
      const std::vector<py::sequence>& given,
      const std::vector<std::pair<std::vector<std::int64_t>, std::int64_t>>& states) {
    std::vector<StepSpan> spans;
    std::vector<std::vector<GivenRows>> rows;
    for (const py::sequence& one : given) {
      rows.push_back(given_from_python(one, model_->spec().hidden));
      check_given(rows.back(), model_->spec(), std::numeric_limits<std::int32_t>::max());
    }
    for (const auto& [sequence, tokens, logits] : from) {
      const Adapter* adapter = adapters.empty() ? nullptr : adapters.at(spans.size());
      spans.push_back({&sequence->seq, tokens.data(), static_cast<std::int64_t>(tokens.size()),
                       logits_mode(logits), false, adapter});
      if (!rows.empty()) spans.back().given = rows.at(spans.size() - 1);
    }
    std::vector<StateLog> logs;
    for (const auto& [layers, skip] : states) logs.push_back({layers, skip, {}});
    for (std::size_t i = 0; i < logs.size(); ++i) spans.at(i).states = &logs[i];
    py::array_t<float> out({TextModel::logit_rows(spans), model_->spec().vocab});
    float* values = out.mutable_data();
    int checks = 0;
    const StepControl control{[&] { return interrupt_at && checks++ == *interrupt_at; }};
    StepOutcome outcome;
    {
      const py::gil_scoped_release unlocked;
      outcome = model_->forward(spans, control, values);
    }
    if (outcome != StepOutcome::done) return py::none();
    if (logs.empty()) return out;
    py::list logged;
    for (const StateLog& log : logs) {
      logged.append(py::array_t<float>(static_cast<py::ssize_t>(log.rows.size()), log.rows.data()));
    }
    return py::make_tuple(out, logged);
  }

  TextModel& model() { return *model_; }

 private:
  const std::uint8_t* bytes_of(const py::array& array) {
    if (!(array.flags() & py::array::c_style)) throw InvalidRequest("tensors: not contiguous");
    const auto* data = static_cast<const std::uint8_t*>(array.data());
    if (reinterpret_cast<std::uintptr_t>(data) % kCacheLine == 0) {
      held_.push_back(array);
      return data;
    }
    copies_.emplace_back(static_cast<std::size_t>(array.nbytes()));
    std::memcpy(copies_.back().data(), data, copies_.back().size());
    return copies_.back().as<std::uint8_t>();
  }

  std::vector<py::object> held_;
  std::vector<AlignedBuffer> copies_;
  ThreadPool pool_;
  std::unique_ptr<TextModel> model_;
};

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

py::tuple choose(const FloatArray& logits, const std::string& scores, std::int64_t chosen,
                 bool renormalize, const std::optional<FloatArray>& correction, float scale,
                 float routed_scale) {
  Router router;
  router.scores = scores == "softmax"          ? Router::Scores::softmax
                  : scores == "softmax_chosen" ? Router::Scores::softmax_chosen
                                               : Router::Scores::sigmoid;
  router.renormalize = renormalize;
  router.correction = correction ? correction->data() : nullptr;
  router.scale = scale;
  router.routed_scale = routed_scale;
  router.chosen = chosen;
  const std::int64_t rows = logits.shape(0), n = logits.shape(1);
  py::array_t<std::int32_t> experts({rows, chosen});
  py::array_t<float> weights({rows, chosen});
  std::vector<float> row(static_cast<std::size_t>(n)), keys(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy_n(logits.data(r, 0), n, row.data());
    choose_experts(kernels(), router, n, row.data(), keys.data(), experts.mutable_data(r, 0),
                   weights.mutable_data(r, 0));
  }
  return py::make_tuple(experts, weights);
}

using LayerSizes = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

// layers: (kv_heads, padded head_dim, window) of each.
std::shared_ptr<PagePool> new_pool(const std::string& kv, const std::vector<LayerSizes>& layers,
                                   std::int64_t budget) {
  ModelSpec spec;
  for (const auto& [heads, dim, window] : layers) {
    spec.layers.emplace_back();
    spec.layers.back().attention.kv_heads = heads;
  }
  const KvChoice formats = kv_choice(kv, spec);
  KvLayout layout;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto [heads, dim, window] = layers[i];
    layout.layers.push_back({dim, window, formats.at(i)});
  }
  return std::make_shared<PagePool>(std::move(layout), budget);
}

void register_cache(py::module_& m) {
  py::class_<PagePool, std::shared_ptr<PagePool>>(m, "PagePool")
      .def(py::init(&new_pool), py::arg("kv"), py::arg("layers"), py::arg("budget"),
           "layers: (kv_heads, padded head_dim, window) of each.")
      .def(py::init([](TestModel& model, std::int64_t budget) {
             return std::make_shared<PagePool>(model.model().kv_layout(), budget);
           }),
           py::arg("model"), py::arg("budget") = std::int64_t{1} << 40)
      .def("bytes_for", &PagePool::bytes_for, py::arg("tokens"), py::arg("step"),
           py::arg("evicted") = 0)
      .def_property_readonly("classes", &PagePool::classes)
      .def("window", &PagePool::window)
      .def("open_bytes", &PagePool::open_bytes)
      .def(
          "sealed_bytes",
          [](const PagePool& pool, int page_class, std::int64_t page) {
            return pool.sealed_bytes(page_class, form_of_page(page));
          },
          py::arg("page_class"), py::arg("page") = 1)
      .def("usage", [](const PagePool& pool) {
        const PagePool::Usage u = pool.usage();
        return py::dict(py::arg("budget") = u.budget, py::arg("in_use") = u.in_use,
                        py::arg("allocated") = u.allocated, py::arg("peak") = u.peak,
                        py::arg("mapped") = u.mapped, py::arg("pages") = u.pages,
                        py::arg("open_pages") = u.open_pages);
      });
  py::class_<TestSequence>(m, "Sequence")
      .def(py::init([](std::shared_ptr<PagePool> pool) {
             Sequence sequence(*pool);
             return TestSequence{std::move(pool), std::move(sequence)};
           }),
           py::arg("pool"))
      .def_property_readonly("length", [](const TestSequence& s) { return s.seq.length(); })
      .def_property_readonly("accepted", [](const TestSequence& s) { return s.seq.accepted(); })
      .def(
          "pages", [](const TestSequence& s, int c) { return s.seq.pages(c); },
          py::arg("page_class") = 0)
      .def("fork", [](const TestSequence& s) { return TestSequence{s.pool, s.seq.fork()}; })
      .def(
          "truncate", [](TestSequence& s, std::int64_t n) { return s.seq.truncate(n); },
          py::arg("length"))
      .def(
          "accept", [](TestSequence& s, std::int64_t n) { s.seq.accept(n); }, py::arg("length"))
      .def(
          "begin_step", [](TestSequence& s, std::int64_t n) { s.seq.begin_step(n); },
          py::arg("count"))
      .def("commit_step", [](TestSequence& s) { s.seq.commit_step(); })
      .def("discard_step", [](TestSequence& s) { s.seq.discard_step(); });
}

}  // namespace

void register_model_testing(py::module_& core) {
  py::module_ m = core.def_submodule("testing");
  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter");
  py::class_<TestModel>(m, "TextModel")
      .def(py::init<const py::object&, const py::dict&, int, const std::string&>(), py::arg("spec"),
           py::arg("tensors"), py::kw_only(), py::arg("threads") = 1, py::arg("kv") = "f32")
      .def("forward", &TestModel::forward, py::arg("spans"), py::kw_only(),
           py::arg("interrupt_at") = py::none(), py::arg("adapters") = std::vector<Adapter*>(),
           py::arg("given") = std::vector<py::sequence>(), py::arg("states") = py::tuple())
      .def("adapter", &TestModel::adapter, py::arg("tensors"), py::arg("over") = py::none())
      .def("work_bytes", [](TestModel& m) { return m.model().work_bytes(); })
      .def(
          "scratch_bytes",
          [](TestModel& m, std::int64_t rows) { return m.model().scratch_bytes(rows); },
          py::arg("rows"));
  register_cache(m);
  m.def("choose_experts", &choose, py::arg("logits"), py::kw_only(), py::arg("scores"),
        py::arg("chosen"), py::arg("renormalize") = false, py::arg("correction") = std::nullopt,
        py::arg("scale") = 1.0f, py::arg("routed_scale") = 1.0f,
        "float32 logits [rows, experts] -> experts int32, weights float32 [rows, chosen].");
  m.def(
      "rope_table",
      [](const py::object& spec, std::int64_t positions) {
        const ModelSpec model = spec_from_python(spec);
        RopeTable table = make_rope(model.ropes.at(0), false);
        table.extend(positions);
        py::array_t<float> out({std::int64_t{2}, positions, table.half()});
        for (std::int64_t p = 0; p < positions; ++p) {
          std::copy_n(table.cos(p), table.half(), out.mutable_data(0, p, 0));
          std::copy_n(table.sin(p), table.half(), out.mutable_data(1, p, 0));
        }
        return out;
      },
      py::arg("spec"), py::arg("positions"), "cos and sin of ropes[0]: [2, positions, dim / 2].");
}

}  // namespace musespark

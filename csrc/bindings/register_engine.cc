// _core.Engine, and in `testing` the sampler and the pace of prefill alone.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/cpu.h"
#include "base/float_env.h"
#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "decode/draft_context.h"
#include "decode/draft_model.h"
#include "decode/engine.h"
#include "decode/pace.h"
#include "decode/runner.h"
#include "dict_reader.h"
#include "events_to_python.h"
#include "formats/weights_codec.h"
#include "given_from_python.h"
#include "kernels/dispatch.h"
#include "kv_formats.h"
#include "model/drafter.h"
#include "model/prepared.h"
#include "model/text_model.h"
#include "params_from_python.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

std::vector<std::int32_t> tokens_from_python(py::handle value) {
  const bool fits =
      py::isinstance<py::array>(value) &&
      py::reinterpret_borrow<py::array>(value).dtype().is(py::dtype::of<std::int32_t>()) &&
      py::reinterpret_borrow<py::array>(value).ndim() == 1;
  if (!fits) DictReader::fail("tokens", shown(value), "a 1-D int32 array");
  const auto array = py::array_t<std::int32_t, py::array::c_style>::ensure(value);
  return {array.data(), array.data() + array.size()};
}

// The engine with everything it stands on, in the order it is torn down.
class PyEngine {
 public:
  PyEngine(const py::object& spec, const py::dict& tensors, int threads, std::int64_t context,
           const std::string& kv, std::int64_t memory_budget, std::int64_t prefill_chunk,
           std::int64_t max_batch, bool prefix_cache, std::optional<std::int64_t> prefix_bytes,
           const std::optional<std::pair<py::object, py::dict>>& drafter)
      : pool_(threads) {
    ModelSpec model_spec = spec_from_python(spec);
    const auto views = tensors_from_python(tensors, buffers_);
    check_spec(model_spec);
    const KvChoice formats = kv_choice(kv, model_spec);
    std::optional<std::pair<ModelSpec, Drafter::Tensors>> drafts;
    if (drafter) {
      drafts.emplace(spec_from_python(drafter->first),
                     tensors_from_python(drafter->second, buffers_));
    }
    const py::gil_scoped_release unlocked;
    model_ = std::make_unique<TextModel>(std::move(model_spec), views, pool_, formats);
    pages_ = std::make_unique<PagePool>(model_->kv_layout(), memory_budget);
    if (drafts) make_drafter(std::move(drafts->first), drafts->second, views, context);
    EngineOptions options{context, prefill_chunk, max_batch, prefix_cache};
    if (prefix_bytes) options.prefix_bytes = *prefix_bytes;
    engine_ = std::make_unique<Engine>(*model_, *pages_, pool_, options, source_.get());
    runner_ = std::make_unique<Runner>(*engine_);
    context_ = context;
  }

  std::int64_t submit(const py::object& tokens, const py::dict& params,
                      std::optional<std::int64_t> base) {
    auto ids = tokens_from_python(tokens);
    auto request = params_from_python(params, model_->spec().hidden);
    const py::gil_scoped_release unlocked;
    return engine_->submit(std::move(ids), std::move(request), base);
  }

  // `count`: of the request's rows.
  void provide_rows(std::int64_t id, std::int64_t index, const py::array& rows,
                    const py::sequence& taps) {
    const std::int64_t hidden = model_->spec().hidden;
    const std::int64_t count = rows.ndim() == 2 ? rows.shape(0) : 0;
    auto floats = floats_from_python(rows, count, hidden, "rows");
    auto more = taps_from_python(taps, count, hidden, "taps");
    const py::gil_scoped_release unlocked;
    engine_->provide_rows(id, index, count, std::move(floats), std::move(more));
  }

  std::int64_t add_adapter(const py::dict& tensors, std::optional<std::int64_t> over) {
    HeldBuffers held;
    const auto views = tensors_from_python(tensors, held);
    const py::gil_scoped_release unlocked;
    return engine_->add_adapter(views, over);
  }

  std::int64_t begin_restore(const py::object& tokens, std::int64_t prompt, bool short_rope,
                             std::optional<std::int64_t> adapter) {
    auto ids = tokens_from_python(tokens);
    const auto length = static_cast<std::int64_t>(ids.size());
    const py::gil_scoped_release unlocked;
    return engine_->begin_restore({std::move(ids), {length, prompt}, short_rope, adapter});
  }

  std::int64_t begin_export(const py::object& tokens, std::int64_t most,
                            std::optional<std::int64_t> adapter) {
    auto ids = tokens_from_python(tokens);
    const py::gil_scoped_release unlocked;
    return engine_->begin_export(std::move(ids), most, adapter);
  }

  py::list page_list(std::int64_t length, std::int64_t prompt) const {
    py::list out;
    for (const SavedPage& page : engine_->page_list({length, prompt})) {
      out.append(py::make_tuple(page.page_class, page.index, page.bytes));
    }
    return out;
  }

  py::dict saved(std::int64_t id) {
    SavedSequence s;
    {
      const py::gil_scoped_release unlocked;
      s = engine_->saved(id);
    }
    const auto count = static_cast<py::ssize_t>(s.tokens.size());
    return py::dict(py::arg("tokens") = py::array_t<std::int32_t>(count, s.tokens.data()),
                    py::arg("prompt") = s.lengths.prompt, py::arg("short_rope") = s.short_rope,
                    py::arg("adapter") = s.adapter);
  }

  bool read_page(std::int64_t id, std::int64_t index, py::array_t<std::uint8_t>& out) {
    const std::span<std::uint8_t> bytes(out.mutable_data(), static_cast<std::size_t>(out.size()));
    const py::gil_scoped_release unlocked;
    return engine_->read_page(id, index, bytes);
  }

  bool write_page(std::int64_t id, std::int64_t index, const py::buffer& data) {
    const HeldBuffer held(data, "data");
    const std::span bytes(held.data(), static_cast<std::size_t>(held.bytes()));
    const py::gil_scoped_release unlocked;
    return engine_->write_page(id, index, bytes);
  }

  py::list run_until(double max_seconds) {
    std::vector<Event> events;
    {
      const py::gil_scoped_release unlocked;
      engine_->run_until(max_seconds, events);
    }
    return events_to_python(events);
  }

  // None: there will be none any more.
  std::optional<py::list> take_events() {
    std::vector<Event> events;
    {
      const py::gil_scoped_release unlocked;
      events = runner_->take();
    }
    if (events.empty()) return std::nullopt;
    return events_to_python(events);
  }

  py::dict stats() const {
    const EngineStats s = engine_->stats();
    return py::dict(
        py::arg("waiting") = s.waiting, py::arg("running") = s.running,
        py::arg("retained") = s.retained, py::arg("steps") = s.steps, py::arg("rows") = s.rows,
        py::arg("preemptions") = s.preemptions, py::arg("redone_steps") = s.redone_steps,
        py::arg("kv_bytes_used") = s.kv_bytes_used, py::arg("kv_bytes_limit") = s.kv_bytes_limit,
        py::arg("kv_bytes_allocated") = s.kv_bytes_allocated,
        py::arg("prefix_bytes") = s.prefix_bytes, py::arg("pages") = s.pages,
        py::arg("open_pages") = s.open_pages, py::arg("adapters") = s.adapters,
        py::arg("adapter_bytes") = s.adapter_bytes, py::arg("drafter_tokens") = s.drafter_tokens,
        py::arg("threads") = pool_.threads(), py::arg("context") = context_,
        py::arg("isa") = isa_name(kernels().isa));
  }

  py::list windows() const {
    py::list out;
    for (int c = 0; c < pages_->classes(); ++c) out.append(pages_->window(c));
    return out;
  }

  Engine& engine() const { return *engine_; }
  Runner& runner() const { return *runner_; }

 private:
  // A block drafter, or a model that drafts.
  void make_drafter(ModelSpec spec, const Drafter::Tensors& tensors, const Drafter::Tensors& target,
                    std::int64_t context) {
    if (spec.block > 0) {
      drafter_ = std::make_unique<Drafter>(std::move(spec), tensors, model_->spec(), target, pool_);
      source_ = std::make_unique<DraftContext>(*drafter_, context);
      return;
    }
    const KvChoice formats = same_for_all(spec, KvFormat::kv8);
    drafting_model_ = std::make_unique<TextModel>(std::move(spec), tensors, pool_, formats);
    source_ = std::make_unique<DraftModel>(*drafting_model_, model_->spec().vocab, context);
  }

  HeldBuffers buffers_;
  ThreadPool pool_;
  std::unique_ptr<TextModel> model_;
  std::unique_ptr<PagePool> pages_;
  std::unique_ptr<Drafter> drafter_;  // one of the two, where there is a source
  std::unique_ptr<TextModel> drafting_model_;
  std::unique_ptr<DraftSource> source_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Runner> runner_;
  std::int64_t context_ = 0;
};

py::tuple sample_row(const py::array_t<float, py::array::c_style>& row, std::uint64_t position,
                     const py::dict& params, const py::object& prompt, const py::object& completion,
                     const py::object& allowed, const py::object& blocked) {
  if (row.ndim() != 1) DictReader::fail("row", std::to_string(row.ndim()) + " dimensions", "1");
  DictReader d(params, "");
  SamplingParams sampling = read_sampling(d);
  d.finish();
  check_sampling_params(sampling, row.size());
  const auto checked = [&row](const py::object& ids, const char* name) {
    const auto out = ids_from_python(ids, name);
    for (const std::int32_t id : out) {
      if (id < 0 || id >= row.size())
        DictReader::fail(name, std::to_string(id), "an id of the row");
    }
    return out;
  };
  Sampler sampler(std::move(sampling), row.size());
  sampler.add_prompt(checked(prompt, "prompt"));
  for (const std::int32_t token : checked(completion, "completion")) sampler.add_completion(token);
  std::vector<std::uint64_t> bits;
  if (!allowed.is_none()) bits.resize(static_cast<std::size_t>((row.size() + 63) / 64));
  for (const std::int32_t id :
       allowed.is_none() ? std::vector<std::int32_t>{} : checked(allowed, "allowed")) {
    bits[id / 64] |= std::uint64_t{1} << (id % 64);
  }
  const auto never = checked(blocked, "blocked");
  SamplerScratch scratch;
  const FloatEnv environment;
  const SampledToken out =
      sampler.sample(row.data(), position, {.allowed = bits, .blocked = never}, scratch);
  return py::make_tuple(out.token, out.logprob, top_list(out.top));
}

py::tuple signals_of(const py::array_t<float, py::array::c_style>& row, std::int32_t token,
                     std::int32_t close) {
  if (row.ndim() != 1 || std::min(token, close) < 0 || std::max(token, close) >= row.size()) {
    DictReader::fail("row", std::to_string(row.size()) + " values", "one for each id");
  }
  std::vector<float> memory;
  const FloatEnv environment;
  const std::span<const float> values(row.data(), static_cast<std::size_t>(row.size()));
  const TokenSignals s = token_signals(values, token, close, memory);
  return py::make_tuple(s.margin, s.logprob, s.entropy, s.confidence);
}

void register_engine_testing(py::module_& m) {
  auto testing = m.def_submodule("testing");
  py::class_<PrefillPace>(testing, "PrefillPace")
      .def(py::init<double>(), py::kw_only(), py::arg("weight"))
      .def(
          "observe",
          [](PrefillPace& pace, std::int64_t decode_rows, std::int64_t prefill_rows, double keys,
             double seconds) { pace.observe({decode_rows, prefill_rows, keys}, seconds); },
          py::kw_only(), py::arg("decode_rows"), py::arg("prefill_rows"), py::arg("keys"),
          py::arg("seconds"))
      .def("wants_alone", &PrefillPace::wants_alone, py::arg("decode_rows"))
      .def("units", &PrefillPace::units)
      .def("most_rows", &PrefillPace::most_rows)
      .def("cost", &PrefillPace::cost, py::arg("keys"));
  testing.def(
      "share_prefill",
      [](const PrefillPace& pace, const std::vector<std::pair<std::int64_t, double>>& work,
         std::int64_t rows, double units) {
        std::vector<PrefillWork> all;
        for (const auto& [limit, keys] : work) all.push_back({limit, keys});
        return share_prefill(pace, all, rows, units);
      },
      py::arg("pace"), py::arg("work"), py::kw_only(), py::arg("rows"), py::arg("units"),
      "Rows of each (limit, keys); see csrc/decode/pace.h.");
  testing.def("sample", &sample_row, py::arg("row"), py::kw_only(), py::arg("position"),
              py::arg("params"), py::arg("prompt") = py::tuple(),
              py::arg("completion") = py::tuple(), py::arg("allowed") = py::none(),
              py::arg("blocked") = py::tuple(),
              "(token, logprob, top) of one row of logits; see csrc/decode/sampler.h.");
  testing.def("signals", &signals_of, py::arg("row"), py::kw_only(), py::arg("token"),
              py::arg("close"), "Of one row of logits: csrc/decode/signals.h.");
}

template <class Method>
auto with_engine(Method method) {
  return [method](PyEngine& self, std::int64_t id) { return (self.engine().*method)(id); };
}

void register_running(py::class_<PyEngine>& engine) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  engine
      .def("run_until", &PyEngine::run_until, py::arg("max_seconds") = 0.02,
           "Steps until the time is over, a sequence wrote its first token or ended, logits came\n"
           "or nothing is left; tokens of those that go on may come with the next call. Returns\n"
           "events: ('tokens', id, ids, logprobs|None, tops|None, signals|None),\n"
           "('logits', id, first, array), ('rows_wanted', id, index of params['given']),\n"
           "('finished', id, reason, (kind, message)|None, stats).")
      .def(
          "run", [](PyEngine& self, double slice_s) { self.runner().run(slice_s); },
          py::arg("slice_s"), unlocked(),
          "run_until again and again, until nothing is left to do but to wait, or `stop`. Its\n"
          "events are for `take_events` in another thread, which may lag 100 ms behind.")
      .def("take_events", &PyEngine::take_events,
           "Waits for events of `run`; None after `end_events`, once all have been taken.")
      .def(
          "stop", [](PyEngine& self) { self.runner().stop(); }, unlocked(),
          "`run` returns after its slice and a step, now and from now on.")
      .def(
          "end_events", [](PyEngine& self) { self.runner().end(); }, unlocked(),
          "There will be no events any more.");
}

void register_transfers(py::class_<PyEngine>& engine) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  engine
      .def("begin_save", with_engine(&Engine::begin_save), py::arg("id"), unlocked(),
           "Begins to read a retained sequence's pages; see csrc/decode/engine.h.")
      .def("begin_restore", &PyEngine::begin_restore, py::arg("tokens"), py::kw_only(),
           py::arg("prompt"), py::arg("short_rope"), py::arg("adapter"),
           "Makes a retained sequence of these tokens whose pages are to be written; its id.")
      .def("begin_export", &PyEngine::begin_export, py::arg("tokens"), py::kw_only(),
           py::arg("most"), py::arg("adapter"),
           "Makes a retained sequence of what is kept of past prompts, its pages to be read.")
      .def(
          "wait_transfer",
          [](PyEngine& self, std::int64_t id, double seconds) {
            return self.engine().wait_transfer(id, seconds);
          },
          py::arg("id"), py::arg("seconds"), unlocked(), "Whether the pages can be reached.")
      .def("saved", &PyEngine::saved, py::arg("id"),
           "tokens (int32; none where the pages are gone), prompt, short_rope, adapter.")
      .def("read_page", &PyEngine::read_page, py::arg("id"), py::arg("index"),
           py::arg("out").noconvert(), "Copies a page out; False where the pages are gone.")
      .def("write_page", &PyEngine::write_page, py::arg("id"), py::arg("index"), py::arg("data"),
           "Copies a page in; False where the pages are gone.")
      .def("end_transfer", with_engine(&Engine::end_transfer), py::arg("id"), unlocked(),
           "Ends what begin_save or begin_restore began.")
      .def("page_list", &PyEngine::page_list, py::kw_only(), py::arg("length"), py::arg("prompt"),
           "Class, index and bytes of each page of a saved sequence of these lengths.")
      .def("windows", &PyEngine::windows, "The attention window of each page class; 0: none.");
}

void register_thinking(py::module_& m) {
  py::class_<TokenClasses, std::shared_ptr<TokenClasses>>(m, "TokenClasses")
      .def(py::init([](const py::bytes& of) {
             const std::string_view bytes(of);
             return std::make_shared<TokenClasses>(
                 std::vector<std::uint8_t>(bytes.begin(), bytes.end()));
           }),
           py::arg("of"), "A byte for each token of a vocabulary: csrc/decode/thinking.h.");
  py::list features;
  for (const std::string_view name : kFeatureNames) features.append(std::string(name));
  m.attr("stopper_features") = py::tuple(features);  // csrc/decode/stopper.h
}

}  // namespace

void register_engine(py::module_& m) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  register_thinking(m);
  py::class_<PyEngine> engine(
      m, "Engine",
      "The engine of one model. Thread-safe, but run_until is for one thread at a time.\n"
      "`spec` is dataclasses.asdict of a families.spec.ModelSpec; `tensors` maps names to\n"
      "(format, rows, cols, buffer), whose buffers stay held. `drafter`: spec and tensors of a\n"
      "block drafter or a model with the same tokens, or None. Errors: InvalidRequest,\n"
      "UnsupportedModel, CorruptFile.");
  engine
      .def(py::init<const py::object&, const py::dict&, int, std::int64_t, const std::string&,
                    std::int64_t, std::int64_t, std::int64_t, bool, std::optional<std::int64_t>,
                    const std::optional<std::pair<py::object, py::dict>>&>(),
           py::arg("spec"), py::arg("tensors"), py::kw_only(), py::arg("threads"),
           py::arg("context"), py::arg("kv"), py::arg("memory_budget"),
           py::arg("prefill_chunk") = 512, py::arg("max_batch") = 64,
           py::arg("prefix_cache") = true, py::arg("prefix_cache_bytes") = py::none(),
           py::arg("drafter") = py::none())
      .def("submit", &PyEngine::submit, py::arg("tokens"), py::kw_only(), py::arg("params"),
           py::arg("base") = py::none(),
           "Queues a request, returns its id. `tokens`: int32 array [n]. `base`: a retained id\n"
           "whose common prefix is reused. InvalidRequest, ContextOverflow, MemoryBudgetExceeded.")
      .def(
          "provide_rows", &PyEngine::provide_rows, py::arg("id"), py::arg("index"), py::arg("rows"),
          py::arg("taps") = py::tuple(),
          "What a 'rows_wanted' event asks for: float32 [count, hidden], and as many for each tap.")
      .def("add_adapter", &PyEngine::add_adapter, py::arg("tensors"), py::kw_only(),
           py::arg("over") = py::none(),
           "Copies an adapter's tensors (csrc/model/README.md), laid over those of the adapter "
           "'over'; its id is for params['adapter'].")
      .def("remove_adapter", with_engine(&Engine::remove_adapter), py::arg("id"), unlocked(),
           "No later request may name it.")
      .def("cancel", with_engine(&Engine::cancel), py::arg("id"), unlocked(),
           "Ends a sequence within one layer.")
      .def(
          "cancel_all", [](PyEngine& self) { self.engine().cancel_all(); }, unlocked(),
          "Ends every waiting and running sequence.")
      .def("fork", with_engine(&Engine::fork), py::arg("id"), unlocked(),
           "A retained sequence's twin; returns its id.")
      .def("release", with_engine(&Engine::release), py::arg("id"), unlocked(),
           "Gives a retained sequence up.")
      .def(
          "has_work", [](PyEngine& self) { return self.engine().has_work(); }, unlocked(),
          "Whether run_until has anything to do.")
      .def(
          "waits_for_rows", [](PyEngine& self) { return self.engine().waits_for_rows(); },
          unlocked(), "Whether all of it waits for provide_rows.")
      .def("stats", &PyEngine::stats, "Counters, bytes, threads and the instruction set in use.");
  register_running(engine);
  register_transfers(engine);
  register_engine_testing(m);
}

}  // namespace musespark

#include "params_from_python.h"

#include <limits>
#include <string>
#include <utility>

#include "constraint_from_python.h"
#include "given_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

constexpr std::int64_t kMostIds = std::numeric_limits<std::int32_t>::max();

ThoughtParams read_thoughts(DictReader d) {
  ThoughtParams out;
  out.cache = d.choice<ThoughtCache>("cache", {{"keep", ThoughtCache::keep},
                                               {"demote", ThoughtCache::demote},
                                               {"drop", ThoughtCache::drop}});
  if (d.has("most_tokens")) out.most_tokens = d.integer("most_tokens");
  for (const auto& marks : d.list("opens")) {
    out.opens.push_back(ids_from_python(marks, d.path("opens")));
  }
  out.closes = ids_from_python(d.value("closes"), d.path("closes"));
  if (d.has("header")) {
    const std::vector<std::int32_t> ids = ids_from_python(d.value("header"), d.path("header"));
    if (ids.size() != 2) DictReader::fail(d.path("header"), shown(d.value("header")), "two ids");
    out.header = ids[0];
    out.content = ids[1];
  }
  d.finish();
  return out;
}

Stopper read_stopper(DictReader d) {
  Stopper out;
  DictReader weights = d.dict("weights");
  for (std::size_t i = 0; i < kFeatureNames.size(); ++i) {
    const std::string name(kFeatureNames[i]);
    if (weights.has(name.c_str())) out.weights[i] = weights.real(name.c_str());
  }
  weights.finish();
  out.bias = d.real("bias");
  out.threshold = d.real("threshold");
  d.finish();
  return out;
}

ThoughtStoppers read_stoppers(DictReader& d) {
  ThoughtStoppers out;
  if (d.has("stopper")) out.confident = read_stopper(d.dict("stopper"));
  if (d.has("hopeless")) out.hopeless = read_stopper(d.dict("hopeless"));
  return out;
}

ThinkingParams read_thinking(DictReader d) {
  ThinkingParams out;
  if (d.has("budget")) out.budget = d.integer("budget");
  if (d.has("landing")) out.landing = d.integer("landing");
  if (d.has("landing_bias")) out.landing_bias = static_cast<float>(d.real("landing_bias"));
  if (d.has("margin")) out.margin = static_cast<float>(d.real("margin"));
  if (d.has("least")) out.least = d.integer("least");
  if (d.has("loop")) out.loop = d.integer("loop");
  if (d.has("signals")) out.signals = d.boolean("signals");
  out.stoppers = read_stoppers(d);
  if (d.has("deadline_s")) out.deadline_s = d.real("deadline_s");
  if (d.has("reserve")) out.reserve = d.integer("reserve");
  if (d.has("message")) out.message = ids_from_python(d.value("message"), d.path("message"));
  out.close = static_cast<std::int32_t>(d.integer("close", 0, kMostIds));
  if (d.has("header")) out.header = ids_from_python(d.value("header"), d.path("header"));
  if (d.has("answer")) out.answer = ids_from_python(d.value("answer"), d.path("answer"));
  for (const auto& opening : d.list("openings")) {
    const std::string path = d.path("openings");
    std::vector<std::int32_t> ids = ids_from_python(opening, path);
    if (ids.empty()) DictReader::fail(path, "no id", "at least one");
    const std::int32_t last = ids.back();
    ids.pop_back();
    out.openings.push_back({std::move(ids), last});
  }
  const py::object classes = d.value("classes");
  if (!py::isinstance<TokenClasses>(classes)) {
    DictReader::fail(d.path("classes"), shown(classes), "TokenClasses");
  }
  out.classes = classes.cast<std::shared_ptr<TokenClasses>>();
  d.finish();
  return out;
}

TrialParams read_trials(DictReader d) {
  TrialParams out;
  out.tokens = d.integer("tokens");
  if (d.has("confident")) out.confident = static_cast<float>(d.real("confident"));
  if (d.has("stable")) out.stable = d.integer("stable");
  if (d.has("every")) out.every = d.integer("every");
  out.stoppers = read_stoppers(d);
  out.close = ids_from_python(d.value("close"), d.path("close"));
  d.finish();
  return out;
}

std::vector<KeySpan> spans_from_python(const py::sequence& spans) {
  std::vector<KeySpan> out;
  for (const auto& span : spans) {
    if (!py::isinstance<py::sequence>(span) || py::len(span) != 2) {
      DictReader::fail("look_at", shown(span), "pairs of first and count");
    }
    const auto pair = py::reinterpret_borrow<py::sequence>(span);
    out.push_back({to_integer(pair[0], "look_at"), to_integer(pair[1], "look_at")});
  }
  return out;
}

}  // namespace

std::vector<std::int32_t> ids_from_python(py::handle value, const std::string& path) {
  std::vector<std::int32_t> out;
  if (!py::isinstance<py::sequence>(value) || py::isinstance<py::str>(value)) {
    DictReader::fail(path, shown(value), "a sequence of token ids");
  }
  for (const auto& item : py::reinterpret_borrow<py::sequence>(value)) {
    const std::int64_t id = to_integer(item, path);
    if (id != static_cast<std::int32_t>(id))
      DictReader::fail(path, shown(item), "a 32-bit token id");
    out.push_back(static_cast<std::int32_t>(id));
  }
  return out;
}

SamplingParams read_sampling(DictReader& d) {
  SamplingParams out;
  const auto real = [&d](const char* key, float* to) {
    if (d.has(key)) *to = static_cast<float>(d.real(key));
  };
  real("temperature", &out.temperature);
  if (d.has("top_k")) out.top_k = d.integer("top_k");
  if (d.has("top_p")) out.top_p = d.real("top_p");
  real("min_p", &out.min_p);
  real("repetition_penalty", &out.repetition_penalty);
  real("presence_penalty", &out.presence_penalty);
  real("frequency_penalty", &out.frequency_penalty);
  if (d.has("seed")) out.seed = d.unsigned_integer("seed");
  if (d.has("stream")) {
    out.stream = static_cast<std::uint32_t>(
        d.integer("stream", 0, std::numeric_limits<std::uint32_t>::max()));
  }
  if (d.has("logprobs")) out.logprobs = d.integer("logprobs");
  if (d.has("allowed_ids")) {
    out.allowed_ids = ids_from_python(d.value("allowed_ids"), "allowed_ids");
    if (out.allowed_ids.empty())
      DictReader::fail("allowed_ids", "no id", "at least one, or None for all");
  }
  if (d.has("logit_bias")) {
    const py::object bias = d.value("logit_bias");
    if (!py::isinstance<py::dict>(bias))
      DictReader::fail("logit_bias", shown(bias), "a dict of id to number");
    for (const auto& item : py::reinterpret_borrow<py::dict>(bias)) {
      const std::int64_t id = to_integer(item.first, "logit_bias");
      if (id != static_cast<std::int32_t>(id)) {
        DictReader::fail("logit_bias", shown(item.first), "a 32-bit token id");
      }
      const double value = to_real(item.second, "logit_bias[" + std::to_string(id) + "]");
      out.logit_bias.emplace_back(static_cast<std::int32_t>(id), static_cast<float>(value));
    }
  }
  return out;
}

RequestParams params_from_python(const py::dict& params, std::int64_t hidden) {
  DictReader d(params, "");
  RequestParams out;
  out.sampling = read_sampling(d);
  if (d.has("max_new_tokens")) out.max_new_tokens = d.integer("max_new_tokens");
  if (d.has("min_new_tokens")) out.min_new_tokens = d.integer("min_new_tokens");
  if (d.has("stop_ids")) out.stop_ids = ids_from_python(d.value("stop_ids"), "stop_ids");
  if (d.has("logits")) {
    out.logits = d.choice<LogitsMode>("logits", {{"none", LogitsMode::none},
                                                 {"last", LogitsMode::last},
                                                 {"all", LogitsMode::all},
                                                 {"score", LogitsMode::score},
                                                 {"attention", LogitsMode::attention},
                                                 {"states", LogitsMode::states}});
  }
  if (d.has("look_at")) out.look_at = spans_from_python(d.list("look_at"));
  if (d.has("logits_from")) out.logits_from = d.integer("logits_from");
  if (d.has("deadline_s")) out.deadline_s = d.real("deadline_s");
  if (d.has("draft_tokens")) out.draft_tokens = d.integer("draft_tokens");
  if (d.has("draft_eagerly")) out.draft_eagerly = d.boolean("draft_eagerly");
  if (d.has("retain")) out.retain = d.boolean("retain");
  if (d.has("adapter")) out.adapter = d.integer("adapter");
  if (d.has("thoughts")) out.thoughts = read_thoughts(d.dict("thoughts"));
  if (d.has("thinking")) out.thinking = read_thinking(d.dict("thinking"));
  if (d.has("trials")) out.trials = read_trials(d.dict("trials"));
  if (d.has("max_answer_tokens")) out.max_answer_tokens = d.integer("max_answer_tokens");
  if (d.has("constraint")) out.constraint = constraint_from_python(d.value("constraint"));
  if (d.has("given")) out.given = given_from_python(d.list("given"), hidden);
  d.finish();
  return out;
}

}  // namespace musespark

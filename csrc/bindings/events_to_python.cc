#include "events_to_python.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <variant>

namespace py = pybind11;

namespace musespark {

py::list top_list(const std::vector<TokenLogprob>& top) {
  py::list out;
  for (const TokenLogprob& entry : top) out.append(py::make_tuple(entry.token, entry.logprob));
  return out;
}

namespace {

// float32 [tokens, 4]; NaN for tokens without any, None where no token has them.
py::object signals_array(const std::vector<SampledToken>& tokens) {
  const auto has = [](const SampledToken& token) { return token.signals.has_value(); };
  if (std::ranges::none_of(tokens, has)) return py::none();
  py::array_t<float> out({static_cast<py::ssize_t>(tokens.size()), py::ssize_t{4}});
  float* to = out.mutable_data();
  for (const SampledToken& token : tokens) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    const TokenSignals s = token.signals.value_or(TokenSignals{kNone, kNone, kNone, kNone});
    for (const float value : {s.margin, s.logprob, s.entropy, s.confidence}) *to++ = value;
  }
  return out;
}

py::tuple event_tuple(const TokensEvent& event) {
  py::list ids;
  for (const SampledToken& token : event.tokens) ids.append(token.token);
  py::object logprobs = py::none(), tops = py::none();
  if (!event.tokens.empty() && !event.tokens.front().top.empty()) {
    py::list chosen, best;
    for (const SampledToken& token : event.tokens) {
      chosen.append(token.logprob);
      best.append(top_list(token.top));
    }
    logprobs = chosen;
    tops = best;
  }
  return py::make_tuple("tokens", event.id, ids, logprobs, tops, signals_array(event.tokens));
}

// The array owns the event's numbers: a copy might not fit where they just did.
py::tuple event_tuple(LogitsEvent& event) {
  auto owned = std::make_unique<std::vector<float>>(std::move(event.values));
  float* values = owned->data();
  const py::capsule owner(owned.get(), [](void* p) { delete static_cast<std::vector<float>*>(p); });
  owned.release();
  std::vector<py::ssize_t> shape{event.rows};
  if (event.cols != 1) shape.push_back(event.cols);
  return py::make_tuple("logits", event.id, event.first,
                        py::array_t<float>(std::move(shape), values, owner));
}

const char* kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::none:
      return "none";
    case ErrorKind::bad_logits:
      return "bad_logits";
    case ErrorKind::memory:
      return "memory";
    case ErrorKind::constraint:
      return "constraint";
    case ErrorKind::other:
      return "other";
  }
  return "other";
}

py::tuple event_tuple(const RowsWantedEvent& event) {
  return py::make_tuple("rows_wanted", event.id, event.index);
}

py::tuple event_tuple(const FinishedEvent& event) {
  const RequestStats& s = event.stats;
  py::dict stats(
      py::arg("prompt_tokens") = s.prompt_tokens, py::arg("cached_tokens") = s.cached_tokens,
      py::arg("completion_tokens") = s.completion_tokens, py::arg("preemptions") = s.preemptions,
      py::arg("thought_tokens") = s.thought_tokens, py::arg("thought_bytes") = s.thought_bytes,
      py::arg("thought_stop") = std::string(to_string(s.thought_stop)),
      py::arg("demoted_pages") = s.demoted_pages, py::arg("evictions") = s.evictions,
      py::arg("evicted_tokens") = s.evicted_tokens, py::arg("freed_bytes") = s.freed_bytes,
      py::arg("queue_s") = s.queue_s, py::arg("prefill_s") = s.prefill_s,
      py::arg("decode_s") = s.decode_s, py::arg("first_token_s") = s.first_token_s);
  py::list trials;
  for (const TrialResult& trial : s.trials) {
    trials.append(py::make_tuple(trial.at, trial.answer, trial.confidence, trial.rows));
  }
  stats["trials"] = trials;
  stats["trial_tokens"] = s.trial_tokens;
  stats["drafted_tokens"] = s.drafted_tokens;
  stats["accepted_tokens"] = s.accepted_tokens;
  stats["drafter_passes"] = s.drafter_passes;
  stats["drafter_accepted_tokens"] = s.drafter_accepted_tokens;
  py::object error = py::none();
  if (event.reason == FinishReason::error)
    error = py::make_tuple(kind_name(event.kind), event.error);
  return py::make_tuple("finished", event.id, py::str(std::string(to_string(event.reason))), error,
                        stats);
}

}  // namespace

py::list events_to_python(std::vector<Event>& events) {
  py::list out;
  for (Event& event : events) {
    out.append(std::visit([](auto& e) { return event_tuple(e); }, event));
  }
  return out;
}

}  // namespace musespark

#include "model/check_step.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Whether token `t` of a span is a given row.
bool given_at(const StepSpan& span, std::int64_t t) {
  const std::int64_t position = span.seq->length() + t;
  return std::any_of(span.given.begin(), span.given.end(), [&](const GivenRows& given) {
    return given.first <= position && position < given.end();
  });
}

// The given rows of a span of the step.
void check_given_here(const StepSpan& span, const ModelSpec& spec, const std::string& where) {
  const std::int64_t first = span.seq->length(), end = first + span.count;
  for (const GivenRows& given : span.given) {
    if (given.first >= end || given.end() <= first) continue;
    const std::string rows = where + ", given rows " + std::to_string(given.first) + " to " +
                             std::to_string(given.end() - 1);
    if (!given.rows) throw InvalidRequest(rows + " are not there");
    if (spec.mutual_rows && given.end() > end) {
      throw InvalidRequest(rows + " see each other; the step ends at " + std::to_string(end));
    }
  }
}

}  // namespace

void check_step(std::span<const StepSpan> spans, const ModelSpec& spec, const KvLayout& layout) {
  if (spans.empty()) throw InvalidRequest("[forward] a step without spans");
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const StepSpan& span = spans[i];
    const std::string where = "[forward] span " + std::to_string(i);
    if (span.count < 1) {
      throw InvalidRequest(where + " has " + std::to_string(span.count) + " tokens");
    }
    const std::int64_t end = span.seq->length() + span.count;
    if (end > spec.max_context) {
      throw ContextOverflow(where + " ends at " + std::to_string(end) + " tokens; the model's " +
                                "context is " + std::to_string(spec.max_context),
                            end, spec.max_context);
    }
    check_given_here(span, spec, where);
    for (std::int64_t t = 0; t < span.count; ++t) {
      if (given_at(span, t)) continue;
      if (span.tokens[t] < 0 || span.tokens[t] >= spec.vocab) {
        throw InvalidRequest(where + ", token " + std::to_string(t) + ": id " +
                             std::to_string(span.tokens[t]) + " is not in 0 .. " +
                             std::to_string(spec.vocab - 1));
      }
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (spans[j].seq == span.seq) throw InvalidRequest(where + " repeats a sequence");
    }
    if (&span.seq->pool() != &spans[0].seq->pool()) {
      throw InvalidRequest(where + " is of another page pool than span 0");
    }
  }
  if (spans[0].seq->pool().layout() != layout) {
    throw InvalidRequest("[forward] the sequences' page pool was made for another model");
  }
}

}  // namespace musespark

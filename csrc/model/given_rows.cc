#include "model/given_rows.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

[[noreturn]] void refuse(std::size_t index, const char* field, std::int64_t value,
                         const std::string& allowed) {
  throw InvalidRequest("given[" + std::to_string(index) + "]." + field + ": got " +
                       std::to_string(value) + ", allowed is " + allowed);
}

void check_places(std::size_t index, const GivenRows& span, bool by_axis) {
  if (span.places.empty()) {
    if (span.advance != span.count) refuse(index, "advance", span.advance, "count without places");
    return;
  }
  const auto number = static_cast<std::int64_t>(span.places.size());
  if (!by_axis) refuse(index, "places", number, "none: the model's positions have one axis");
  if (number != span.count) {
    refuse(index, "places", number, std::to_string(span.count) + ", the number of rows");
  }
  for (const RopePlace& place : span.places) {
    for (const std::int32_t at : place) {
      if (at < 0 || at >= span.count) {
        refuse(index, "places", at, "0 to " + std::to_string(span.count - 1));
      }
    }
  }
}

void check_taps(std::size_t index, const GivenRows& span, const ModelSpec& spec) {
  const auto number = static_cast<std::int64_t>(span.taps.size());
  const auto most = static_cast<std::int64_t>(spec.layers.size()) - 1;
  if (number > most) refuse(index, "taps", number, "at most " + std::to_string(most));
  for (std::size_t i = 0; i < span.taps.size(); ++i) {
    if (!spec.layers[i].residual_gates) continue;
    refuse(index, "taps", number, "none: layer " + std::to_string(i) + " has residual gates");
  }
}

// The rotary position of a token.
RopePlace rope_place(std::span<const GivenRows> given, std::int64_t position) {
  std::int64_t left_out = 0;  // positions that spans before it did not use up
  for (const GivenRows& span : given) {
    if (span.first > position) break;
    if (position < span.end() && !span.places.empty()) {
      RopePlace place = span.places[static_cast<std::size_t>(position - span.first)];
      for (std::int32_t& at : place) at += static_cast<std::int32_t>(span.first - left_out);
      return place;
    }
    if (position >= span.end()) left_out += span.count - span.advance;
  }
  const auto at = static_cast<std::int32_t>(position - left_out);
  return {at, at, at};
}

bool positions_by_axis(const ModelSpec& spec) {
  return !spec.ropes.empty() && !spec.ropes[0].axes.empty();
}

}  // namespace

void check_given(std::span<const GivenRows> given, const ModelSpec& spec, std::int64_t tokens) {
  std::int64_t free = 0;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const GivenRows& span = given[i];
    if (span.first < free || span.first >= tokens) {
      refuse(i, "first", span.first, std::to_string(free) + " to " + std::to_string(tokens - 1));
    }
    if (span.count < 1 || span.count > tokens - span.first) {
      refuse(i, "count", span.count, "1 to " + std::to_string(tokens - span.first));
    }
    if (span.advance < 1 || span.advance > span.count) {
      refuse(i, "advance", span.advance, "1 to " + std::to_string(span.count));
    }
    check_places(i, span, positions_by_axis(spec));
    check_taps(i, span, spec);
    free = span.end();
  }
}

void StepGiven::clear() {
  count_ = 0;
  rows_.clear();
  taps_.clear();
  places_.clear();
  ahead_.clear();
}

void StepGiven::add(std::span<const GivenRows> given, std::int64_t first, std::int64_t count) {
  const std::int64_t row = count_, end = first + count;
  count_ += count;
  for (const GivenRows& span : given) {
    if (span.first < end && span.end() > first) point_at(row, first, count, span);
  }
  const auto all = static_cast<std::size_t>(count_);
  if (!rows_.empty()) rows_.resize(all);
  for (auto& tap : taps_) tap.resize(all);
  if (!ahead_.empty()) ahead_.resize(all);
  if (given.empty() || !positions_by_axis(spec_)) return;
  places_.resize(all);
  for (std::int64_t p = first; p < end; ++p) {
    places_[static_cast<std::size_t>(row + p - first)] = rope_place(given, p);
  }
}

// The rows of `span` in the step's span, positions first .. first + count - 1, from batch row
// `row`.
void StepGiven::point_at(std::int64_t row, std::int64_t first, std::int64_t count,
                         const GivenRows& span) {
  const auto all = static_cast<std::size_t>(count_);
  const std::int64_t begin = std::max(span.first, first), end = std::min(span.end(), first + count);
  const auto point = [&](std::vector<const float*>& to, const SharedFloats& from) {
    to.resize(all);
    for (std::int64_t p = begin; p < end; ++p) {
      to[static_cast<std::size_t>(row + p - first)] = from.get() + (p - span.first) * spec_.hidden;
    }
  };
  point(rows_, span.rows);
  if (taps_.size() < span.taps.size()) taps_.resize(span.taps.size());
  for (std::size_t i = 0; i < span.taps.size(); ++i) point(taps_[i], span.taps[i]);
  if (!spec_.mutual_rows) return;
  ahead_.resize(all);
  for (std::int64_t p = begin; p < end; ++p) {
    ahead_[static_cast<std::size_t>(row + p - first)] = static_cast<std::int32_t>(end - 1 - p);
  }
}

std::span<const float* const> StepGiven::tap(std::size_t layer) const {
  return layer < taps_.size() ? std::span<const float* const>(taps_[layer])
                              : std::span<const float* const>();
}

const RopePlace* StepGiven::places(std::int64_t row) const {
  return places_.empty() ? nullptr : places_.data() + row;
}

const std::int32_t* StepGiven::ahead(std::int64_t row) const {
  return ahead_.empty() ? nullptr : ahead_.data() + row;
}

}  // namespace musespark

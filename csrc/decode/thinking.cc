#include "decode/thinking.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 31;
constexpr std::int64_t kLongestRest = 3;  // tokens that end a character: at most one a byte

[[noreturn]] void fail(const std::string& field, const std::string& got,
                       const std::string& allowed) {
  throw InvalidRequest("thinking." + field + ": got " + got + ", allowed is " + allowed);
}

void check_count(const char* field, std::int64_t value) {
  if (value < 0 || value >= kMost) {
    fail(field, std::to_string(value), "0 to " + std::to_string(kMost - 1));
  }
}

void check_id(const char* field, std::int32_t id, std::int64_t vocab) {
  if (id < 0 || id >= vocab) {
    fail(field, std::to_string(id), "a token id from 0 to " + std::to_string(vocab - 1));
  }
}

bool ends_with(std::span<const std::int32_t> tokens, const std::vector<std::int32_t>& tail) {
  return tokens.size() >= tail.size() && std::ranges::equal(tokens.last(tail.size()), tail);
}

}  // namespace

std::string_view to_string(ThoughtStop stop) {
  switch (stop) {
    case ThoughtStop::none:
      return "none";
    case ThoughtStop::natural:
      return "natural";
    case ThoughtStop::budget:
      return "budget";
    case ThoughtStop::confident:
      return "confident";
    case ThoughtStop::stable:
      return "stable";
    case ThoughtStop::hopeless:
      return "hopeless";
    case ThoughtStop::loop:
      return "loop";
    case ThoughtStop::deadline:
      return "deadline";
  }
  return "?";
}

TokenClasses::TokenClasses(std::vector<std::uint8_t> of_tokens)
    : of(std::move(of_tokens)), whole((of.size() + 63) / 64) {
  for (std::size_t id = 0; id < of.size(); ++id) {
    if ((of[id] & (kCount | kContinuation)) == 0) whole[id / 64] |= std::uint64_t{1} << (id % 64);
  }
}

ThoughtStop ThoughtStoppers::judge(const Features& features) const {
  if (confident && confident->stops(features)) return ThoughtStop::confident;
  if (hopeless && hopeless->stops(features)) return ThoughtStop::hopeless;
  return ThoughtStop::none;
}

void check_stoppers(const ThoughtStoppers& stoppers, const ThinkingParams& thinking,
                    const std::string& field) {
  if (stoppers.any() && !thinking.signals) {
    fail("signals", "false", "true where a stopper is given");
  }
  if (stoppers.confident) check_stopper(*stoppers.confident, field + ".stopper");
  if (stoppers.hopeless) check_stopper(*stoppers.hopeless, field + ".hopeless");
}

bool ThinkingParams::fits_message(std::int64_t used) const {
  const auto length = static_cast<std::int64_t>(message.size());
  return length > 0 && (!budget || (*budget - used >= length && *budget > length));
}

void check_thinking(const ThinkingParams& params, const ThoughtParams& thoughts,
                    std::int64_t vocab) {
  if (!params.watches()) return;
  if (static_cast<std::int64_t>(params.classes->of.size()) != vocab) {
    fail("classes", std::to_string(params.classes->of.size()) + " tokens", std::to_string(vocab));
  }
  if (params.budget) check_count("budget", *params.budget);
  check_count("landing", params.landing);
  check_count("least", params.least);
  check_count("loop", params.loop);
  check_count("reserve", params.reserve);
  if (!std::isfinite(params.landing_bias) || params.landing_bias < 0) {
    fail("landing_bias", std::to_string(params.landing_bias), "a finite number >= 0");
  }
  if (params.margin && !(*params.margin >= 0 && std::isfinite(*params.margin))) {
    fail("margin", std::to_string(*params.margin), "a finite number >= 0");
  }
  if (params.deadline_s && !(*params.deadline_s >= 0 && *params.deadline_s < 1e9)) {
    fail("deadline_s", std::to_string(*params.deadline_s), "0 to 1e9 seconds from now");
  }
  check_stoppers(params.stoppers, params, "thinking");
  check_id("close", params.close, vocab);
  if (std::ranges::find(thoughts.closes, params.close) == thoughts.closes.end()) {
    fail("close", std::to_string(params.close), "one of thoughts.closes");
  }
  for (const std::int32_t id : params.message) {
    check_id("message", id, vocab);
    if (std::ranges::find(thoughts.closes, id) != thoughts.closes.end()) {
      fail("message", std::to_string(id), "a text: this id ends a thought");
    }
  }
  for (const std::int32_t id : params.header) check_id("header", id, vocab);
  for (const std::int32_t id : params.answer) check_id("answer", id, vocab);
  for (const ThoughtOpening& opening : params.openings) {
    check_id("openings", opening.id, vocab);
    for (const std::int32_t id : opening.after) check_id("openings", id, vocab);
  }
}

void RepeatFinder::take(std::span<const std::int32_t> tokens) {
  const auto size = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t period = 1; period <= kPeriods; ++period) {
    std::int32_t& run = runs_[static_cast<std::size_t>(period - 1)];
    const std::int64_t before = size - 1 - period;
    run = before >= 0 && tokens[static_cast<std::size_t>(before)] == tokens.back() ? run + 1 : 0;
  }
}

bool RepeatFinder::repeats(std::int64_t tokens) const {
  for (std::int64_t period = 1; period <= kPeriods; ++period) {
    const std::int64_t run = runs_[static_cast<std::size_t>(period - 1)];
    if (run >= tokens && run >= 3 * period) return true;
  }
  return false;
}

ThinkingControl::Rule ThinkingControl::force(std::vector<std::int32_t> tokens) {
  end_with(std::move(tokens), why_);
  Rule rule;
  rule.forced = forced_.back();
  forced_.pop_back();
  return rule;
}

ThinkingControl::Rule ThinkingControl::end(const ThinkingParams& params, ThoughtStop why,
                                           bool with_message) {
  why_ = why;
  std::vector<std::int32_t> tokens;
  if (with_message) tokens = params.message;
  tokens.push_back(params.close);
  return force(std::move(tokens));
}

// Where the budget is used up and no thought under way.
ThinkingControl::Rule ThinkingControl::outside(const ThinkingParams& params,
                                               std::span<const std::int32_t> tokens) {
  if (!params.answer.empty() && ends_with(tokens, params.header)) return force(params.answer);
  Rule rule;
  for (const ThoughtOpening& opening : params.openings) {
    if (ends_with(tokens, opening.after)) rule.barred.push_back(opening.id);
  }
  return rule;
}

ThinkingControl::Rule ThinkingControl::next(const ThinkingParams& params,
                                            const ThoughtTracker& thoughts,
                                            std::span<const std::int32_t> tokens,
                                            std::int64_t prompt, const float* row, bool late) {
  Rule rule;
  if (!forced_.empty()) {
    rule.forced = forced_.back();
    forced_.pop_back();
    return rule;
  }
  const auto size = static_cast<std::int64_t>(tokens.size());
  const std::int64_t used = thoughts.count(prompt, size);
  const std::int64_t left = params.budget ? *params.budget - used : kMost;
  if (!thoughts.open()) {
    inside_ = false;
    return left > 0 && !late ? rule : outside(params, tokens);
  }
  if (!inside_) {  // it has just begun
    inside_ = true;
    ending_ = false;
    why_ = ThoughtStop::natural;
    needed_ = 0;
    repeats_.restart();
  }
  if (left <= 0) return end(params, ThoughtStop::budget, false);
  const bool message = params.fits_message(used);
  const std::int64_t kept = message ? static_cast<std::int64_t>(params.message.size()) : 0;
  const std::int64_t free = left - kept;  // tokens that the model itself may still write
  if (free <= 0) return end(params, ThoughtStop::budget, message);
  if (late && !unfinished()) return end(params, ThoughtStop::deadline, message && used > 0);
  const bool sentence = used > 0 && at_sentence_end(params, thoughts, tokens);
  if (params.loop > 0 && !unfinished() && repeats_.repeats(params.loop)) {
    return end(params, ThoughtStop::loop, message);
  }
  const ThoughtStop why = sentence ? sentence_stop(params, used, row) : ThoughtStop::none;
  if (why != ThoughtStop::none) {
    return end(params, why, message && why == ThoughtStop::hopeless);
  }
  if (free <= kLongestRest && !unfinished()) rule.whole = true;
  if (free > params.landing) return rule;
  if (sentence && 2 * free <= params.landing) return end(params, ThoughtStop::budget, message);
  why_ = ThoughtStop::budget;
  rule.raised = params.close;
  rule.by = params.landing_bias * static_cast<float>(params.landing - free + 1) /
            static_cast<float>(params.landing);
  return rule;
}

ThoughtStop ThinkingControl::sentence_stop(const ThinkingParams& params, std::int64_t used,
                                           const float* row) const {
  if (params.margin && used >= params.least &&
      end_margin({row, params.classes->of.size()}, params.close) <= *params.margin) {
    return ThoughtStop::confident;
  }
  if (!params.stoppers.any()) return ThoughtStop::none;
  return params.stoppers.judge(features(params, row));
}

Features ThinkingControl::features(const ThinkingParams& params, const float* row) const {
  return recent_.features(end_margin({row, params.classes->of.size()}, params.close));
}

bool ThinkingControl::at_sentence_end(const ThinkingParams& params, const ThoughtTracker& thoughts,
                                      std::span<const std::int32_t> tokens) const {
  if (!thoughts.open() || !inside_ || ending_ || unfinished()) return false;
  if (static_cast<std::int64_t>(tokens.size()) <= thoughts.spans().back().begin) return false;
  const std::int32_t last = tokens.back();
  return last >= 0 &&
         (params.classes->of[static_cast<std::size_t>(last)] & TokenClasses::kSentence) != 0;
}

void ThinkingControl::end_with(std::vector<std::int32_t> tokens, ThoughtStop why) {
  why_ = why;
  ending_ = true;
  std::ranges::reverse(tokens);
  forced_ = std::move(tokens);
}

void ThinkingControl::took(const ThinkingParams& params, const ThoughtTracker& thoughts,
                           std::span<const std::int32_t> tokens,
                           const std::optional<TokenSignals>& signals) {
  if (!inside_) return;
  if (!thoughts.open()) {
    stop_ = why_;
    inside_ = false;
    return;
  }
  const std::uint8_t of = params.classes->of[static_cast<std::size_t>(tokens.back())];
  const std::int32_t count = of & TokenClasses::kCount;
  const bool goes_on = (of & TokenClasses::kContinuation) != 0;
  needed_ = goes_on ? std::max(0, needed_ - count) : count;
  repeats_.take(tokens.subspan(static_cast<std::size_t>(thoughts.spans().back().begin)));
  if (signals) {
    const bool cue = (of & TokenClasses::kCue) != 0;
    recent_.take(*signals, at_sentence_end(params, thoughts, tokens), cue);
  }
}

}  // namespace musespark

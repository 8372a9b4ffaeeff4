#include "decode/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "base/math64.h"
#include "base/random.h"
#include "ops/softmax.h"

namespace musespark {
namespace {

constexpr float kZeroWeight = -80.0f;  // z at and below which a weight counts as zero
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Of most rows the first or one of the next few holds the draw; more is sorted only when asked for.
constexpr std::int64_t kFirstCandidates = 1;
constexpr std::int64_t kMoreCandidates = 8;  // times as many

[[noreturn]] void fail(const std::string& field, const std::string& got,
                       const std::string& allowed) {
  throw InvalidRequest(field + ": got " + got + ", allowed is " + allowed);
}

void check_id(const std::string& field, std::int32_t id, std::int64_t vocab) {
  if (id < 0 || id >= vocab) {
    fail(field, std::to_string(id), "a token id from 0 to " + std::to_string(vocab - 1));
  }
}

void check_real(const std::string& field, double value, bool ok, const std::string& allowed) {
  if (!std::isfinite(value) || !ok) fail(field, std::to_string(value), allowed);
}

std::span<const float> span_of(const float* row, std::int64_t n) {
  return {row, static_cast<std::size_t>(n)};
}

// Throws unless every value is finite. Exponents of all ones are counted without a branch.
void check_finite(const float* row, std::int64_t n) {
  std::uint32_t bad = 0;
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) {
      const auto bits = std::bit_cast<std::uint32_t>(row[i + j]);
      bad |=
          (bits & 0x7f800000u) + 0x00800000u;  // the sum's top bit is set by 0xff exponents alone
    }
  }
  for (; i < n; ++i) bad |= (std::bit_cast<std::uint32_t>(row[i]) & 0x7f800000u) + 0x00800000u;
  if ((bad & 0x80000000u) == 0) return;
  for (i = 0; i < n; ++i) {
    if (!std::isfinite(row[i])) {
      throw BadLogits("the model's logits are not finite: id " + std::to_string(i) + " of " +
                      std::to_string(n) + " is " + (std::isnan(row[i]) ? "NaN" : "infinite"));
    }
  }
}

// 16 lanes, lane = index mod 16, then one tree: the same order on every machine, and quick.
double ordered_sum(const float* values, std::int64_t n) {
  double lanes[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lanes[j] += values[i + j];
  }
  for (int j = 0; i + j < n; ++j) lanes[j] += values[i + j];
  for (int width = 8; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

// z into weights, then e over it; count entries of `logits`, taken through `ids` unless null.
void weigh(const float* logits, const std::int32_t* ids, std::int64_t count, float max,
           float temperature, SamplerScratch& scratch) {
  scratch.scaled.resize(static_cast<std::size_t>(count));
  scratch.weights.resize(static_cast<std::size_t>(count));
  float* z = scratch.scaled.data();
  float* e = scratch.weights.data();
  for (std::int64_t i = 0; i < count; ++i) {
    const float logit = ids == nullptr ? logits[i] : logits[ids[i]];
    const float scaled = (logit - max) / temperature;
    z[i] = scaled > kZeroWeight ? scaled : kZeroWeight;
  }
  exponentials(scratch.scaled, scratch.weights);
  for (std::int64_t i = 0; i < count; ++i) e[i] = z[i] > kZeroWeight ? e[i] : 0.0f;
}

// Copies the values whose bits are set in all (no words: all are); the others become -inf. Most
// words of a grammar's bitmap are all zeros or nearly all ones, so the rarer bits of a word are
// walked.
void copy_allowed(const float* values, std::int64_t n, std::span<const std::uint64_t> bits,
                  const Choice& choice, float* out) {
  const auto word = [](std::span<const std::uint64_t> of, std::int64_t at) {
    return of.empty() ? ~std::uint64_t{0} : of[static_cast<std::size_t>(at)];
  };
  for (std::int64_t first = 0; first < n; first += 64) {
    const std::int64_t count = std::min<std::int64_t>(64, n - first);
    const std::uint64_t within = ~std::uint64_t{0} >> (64 - count);
    const std::int64_t at = first / 64;
    const std::uint64_t set =
        word(bits, at) & word(choice.allowed, at) & word(choice.also, at) & within;
    const float* from = values + first;
    float* to = out + first;
    if (std::popcount(set) <= 32) {
      std::fill_n(to, count, kMinusInfinity);
      for (std::uint64_t rest = set; rest != 0; rest &= rest - 1) {
        to[std::countr_zero(rest)] = from[std::countr_zero(rest)];
      }
    } else {
      std::copy_n(from, count, to);
      for (std::uint64_t rest = ~set & within; rest != 0; rest &= rest - 1) {
        to[std::countr_zero(rest)] = kMinusInfinity;
      }
    }
  }
}

std::int32_t first_equal(const float* values, std::int64_t n, float wanted) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (values[i] == wanted) return static_cast<std::int32_t>(i);
  }
  throw BadLogits("no token is left to choose from");
}

// log(sum exp(row - max)), max included: subtracting it from a logit gives the log-probability.
double log_normalizer(const float* row, std::int64_t n, float max, SamplerScratch& scratch) {
  weigh(row, nullptr, n, max, 1.0f, scratch);
  return max + math64::log(ordered_sum(scratch.weights.data(), n));
}

}  // namespace

void check_sampling_params(const SamplingParams& params, std::int64_t vocab) {
  check_real("temperature", params.temperature, params.temperature >= 0, "a finite number >= 0");
  if (params.top_k < 0) fail("top_k", std::to_string(params.top_k), "an integer >= 0 (0: off)");
  check_real("top_p", params.top_p, params.top_p > 0 && params.top_p <= 1, "a number in (0, 1]");
  check_real("min_p", params.min_p, params.min_p >= 0 && params.min_p <= 1, "a number in [0, 1]");
  check_real("repetition_penalty", params.repetition_penalty, params.repetition_penalty > 0,
             "a finite number > 0");
  check_real("presence_penalty", params.presence_penalty, true, "a finite number");
  check_real("frequency_penalty", params.frequency_penalty, true, "a finite number");
  if (params.logprobs < 0 || params.logprobs > vocab) {
    fail("logprobs", std::to_string(params.logprobs), "0 to " + std::to_string(vocab));
  }
  std::vector<std::int32_t> ids;
  for (const auto& [id, bias] : params.logit_bias) {
    check_id("logit_bias", id, vocab);
    ids.push_back(id);
    if (!std::isfinite(bias) && bias != kMinusInfinity) {
      fail("logit_bias[" + std::to_string(id) + "]", std::to_string(bias), "finite or -inf");
    }
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) fail("logit_bias", std::to_string(*twice) + " twice", "each id once");
  for (const std::int32_t id : params.allowed_ids) check_id("allowed_ids", id, vocab);
}

Sampler::Sampler(SamplingParams params, std::int64_t vocab)
    : params_(std::move(params)), vocab_(vocab) {
  if (!params_.allowed_ids.empty()) {
    allowed_.assign(static_cast<std::size_t>((vocab + 63) / 64), 0);
    for (const std::int32_t id : params_.allowed_ids) allowed_[id / 64] |= 1ull << (id % 64);
  }
  if (has_penalties()) {
    completion_count_.assign(static_cast<std::size_t>(vocab), 0);
    seen_.assign(static_cast<std::size_t>(vocab), 0);
  }
}

bool Sampler::has_penalties() const {
  return params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f ||
         params_.frequency_penalty != 0.0f;
}

void Sampler::mark_seen(std::int32_t token) {
  if (seen_[token]) return;
  seen_[token] = 1;
  seen_ids_.push_back(token);
}

void Sampler::add_prompt(std::span<const std::int32_t> tokens) {
  if (!has_penalties()) return;
  for (const std::int32_t token : tokens) {
    if (token >= 0) mark_seen(token);  // given rows are no text
  }
}

void Sampler::add_completion(std::int32_t token) {
  if (!has_penalties()) return;
  mark_seen(token);
  ++completion_count_[token];
}

void Sampler::restart(std::span<const std::int32_t> tokens, std::int64_t prompt) {
  if (!has_penalties()) return;
  std::ranges::fill(completion_count_, 0);
  std::ranges::fill(seen_, std::uint8_t{0});
  seen_ids_.clear();
  add_prompt(tokens.first(static_cast<std::size_t>(prompt)));
  for (const std::int32_t token : tokens.subspan(static_cast<std::size_t>(prompt))) {
    add_completion(token);
  }
}

void Sampler::process(const float* row, const Choice& choice, std::vector<float>& out) const {
  out.resize(static_cast<std::size_t>(vocab_));
  copy_allowed(row, vocab_, allowed_, choice, out.data());
  for (const std::int32_t id : choice.blocked) out[id] = kMinusInfinity;
  for (const std::int32_t id : choice.barred) out[id] = kMinusInfinity;
  for (const auto& [id, bias] : params_.logit_bias) out[id] += bias;
  if (choice.raised >= 0) out[choice.raised] += choice.by;
  for (const std::int32_t id : seen_ids_) {
    float value = out[id];
    value = value > 0 ? value / params_.repetition_penalty : value * params_.repetition_penalty;
    if (const std::int32_t count = completion_count_[id]; count > 0) {
      value -= params_.presence_penalty + params_.frequency_penalty * static_cast<float>(count);
    }
    out[id] = value;
  }
}

std::int32_t Sampler::draw(const float* logits, float max, std::uint64_t position,
                           SamplerScratch& scratch) const {
  Candidates candidates(logits, vocab_, scratch.candidates);
  const bool limited = params_.top_k > 0 && params_.top_k < vocab_;
  const std::int64_t survivors = limited ? params_.top_k : vocab_;
  // With top-k the weights lie in candidate order, without it by id.
  std::span<const std::int32_t> order = candidates.largest(limited ? survivors : kFirstCandidates);
  weigh(logits, limited ? order.data() : nullptr, survivors, max, params_.temperature, scratch);
  const float* e = scratch.weights.data();
  const auto weight = [&](std::int64_t rank) { return limited ? e[rank] : e[order[rank]]; };
  const auto reach = [&](std::int64_t rank) {  // makes rank known; false past the last survivor
    if (rank >= survivors) return false;
    if (rank >= static_cast<std::int64_t>(order.size()))
      order = candidates.largest(rank * kMoreCandidates);
    return true;
  };

  double total = ordered_sum(e, survivors);
  std::int64_t kept = survivors;
  if (params_.top_p < 1 || params_.min_p > 0) {
    const double share = params_.top_p < 1 ? params_.top_p * total : total;
    const float least = params_.min_p * weight(0);
    double sum = weight(0);
    kept = 1;
    while (!(params_.top_p < 1 && sum >= share) && reach(kept)) {
      const float next = weight(kept);
      if (next < least || next == 0) break;
      sum += next;
      ++kept;
    }
    total = sum;
  }
  const double target = random_uniform64(params_.seed, params_.stream, position) * total;
  double sum = 0;
  std::int64_t last = 0;
  for (std::int64_t rank = 0; rank < kept && reach(rank); ++rank) {
    const float next = weight(rank);
    if (next == 0) break;
    sum += next;
    last = rank;
    if (sum > target) break;
  }
  return order[static_cast<std::size_t>(last)];  // rounding may leave the sum at the target's foot
}

void Sampler::report(const float* row, SampledToken& token, SamplerScratch& scratch) const {
  if (params_.logprobs == 0) return;
  const double normalizer = log_normalizer(row, vocab_, row_max(span_of(row, vocab_)), scratch);
  const auto logprob = [&](std::int32_t id) { return static_cast<float>(row[id] - normalizer); };
  token.logprob = logprob(token.token);
  Candidates best(row, vocab_, scratch.candidates);
  const auto ids = best.largest(params_.logprobs);
  for (std::int64_t i = 0; i < params_.logprobs; ++i) {
    token.top.push_back({ids[i], logprob(ids[i])});
  }
}

SampledToken Sampler::likeliest(const float* row, SamplerScratch& scratch) const {
  check_finite(row, vocab_);
  const float max = row_max(span_of(row, vocab_));
  SampledToken out;
  out.token = first_equal(row, vocab_, max);
  out.logprob = static_cast<float>(max - log_normalizer(row, vocab_, max, scratch));
  return out;
}

SampledToken Sampler::forced(const float* row, std::int32_t token, SamplerScratch& scratch) const {
  check_finite(row, vocab_);
  SampledToken out;
  out.token = token;
  report(row, out, scratch);
  return out;
}

std::int32_t Sampler::pick(const float* row, std::uint64_t position, const Choice& choice,
                           SamplerScratch& scratch) const {
  check_finite(row, vocab_);
  const bool unchanged = allowed_.empty() && choice.allowed.empty() && choice.also.empty() &&
                         choice.blocked.empty() && choice.barred.empty() && choice.raised < 0 &&
                         params_.logit_bias.empty() && seen_ids_.empty();
  const float* logits = row;
  if (!unchanged) {
    process(row, choice, scratch.logits);
    logits = scratch.logits.data();
  }
  const float max = row_max(span_of(logits, vocab_));
  if (!std::isfinite(max)) {
    throw BadLogits(
        "no token is left to choose from: the largest logit after bias and penalties is " +
        std::to_string(max));
  }
  return params_.temperature == 0 ? first_equal(logits, vocab_, max)
                                  : draw(logits, max, position, scratch);
}

SampledToken Sampler::sample(const float* row, std::uint64_t position, const Choice& choice,
                             SamplerScratch& scratch) const {
  SampledToken out;
  out.token = pick(row, position, choice, scratch);
  report(row, out, scratch);
  return out;
}

float token_logprob(const float* row, std::int64_t vocab, std::int32_t token,
                    SamplerScratch& scratch) {
  check_finite(row, vocab);
  const float max = row_max(span_of(row, vocab));
  return static_cast<float>(row[token] - log_normalizer(row, vocab, max, scratch));
}

}  // namespace musespark

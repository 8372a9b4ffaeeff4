#include "decode/stopper.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/errors.h"
#include "base/math64.h"

namespace musespark {
namespace {

constexpr double kLeastOdds = 1e-4;

double log_count(std::int64_t count) { return math64::log(1.0 + static_cast<double>(count)); }

}  // namespace

void Features::add_trial(double confidence, std::int64_t streak) {
  (*this)[Feature::trial_confidence] =
      math64::log((confidence + kLeastOdds) / (1.0 - confidence + kLeastOdds));
  (*this)[Feature::trial_streak] = log_count(streak);
}

bool Stopper::stops(const Features& features) const {
  double score = bias;
  for (std::size_t i = 0; i < weights.size(); ++i) score += weights[i] * features.values()[i];
  return 1.0 / (1.0 + math64::exp(-score)) >= threshold;
}

void check_stopper(const Stopper& stopper, std::string_view field) {
  const auto fail = [field](const std::string& name, double value, const char* allowed) {
    throw InvalidRequest(std::string(field) + "." + name + ": got " + std::to_string(value) +
                         ", allowed is " + allowed);
  };
  for (std::size_t i = 0; i < kFeatureNames.size(); ++i) {
    if (!std::isfinite(stopper.weights[i])) {
      fail("weights." + std::string(kFeatureNames[i]), stopper.weights[i], "a finite number");
    }
  }
  if (!std::isfinite(stopper.bias)) fail("bias", stopper.bias, "a finite number");
  if (!(stopper.threshold >= 0 && stopper.threshold <= 1)) {
    fail("threshold", stopper.threshold, "0 to 1");
  }
}

void RecentSignals::take(const TokenSignals& signals, bool border, bool cue) {
  const auto at = static_cast<std::size_t>(tokens_) % kRecentTokens;
  logprob_[at] = signals.logprob;
  entropy_[at] = signals.entropy;
  confidence_[at] = signals.confidence;
  ++tokens_;
  borders_ += border ? 1 : 0;
  cues_ += cue ? 1 : 0;
}

// Oldest first.
double RecentSignals::mean(const Ring& ring) const {
  const auto tokens = static_cast<std::size_t>(tokens_);
  const std::size_t count = std::min(tokens, kRecentTokens);
  double sum = 0;
  for (std::size_t i = tokens - count; i < tokens; ++i) {
    sum += static_cast<double>(ring[i % kRecentTokens]);
  }
  return count == 0 ? 0.0 : sum / static_cast<double>(count);
}

Features RecentSignals::features(float margin) const {
  Features out;
  out[Feature::margin] = static_cast<double>(margin);
  out[Feature::logprob] = mean(logprob_);
  out[Feature::entropy] = mean(entropy_);
  out[Feature::confidence] = mean(confidence_);
  out[Feature::tokens] = log_count(tokens_);
  out[Feature::borders] = log_count(borders_);
  out[Feature::cues] = log_count(cues_);
  return out;
}

}  // namespace musespark

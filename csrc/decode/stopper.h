// A logistic stopper: at the end of a sentence of a thought the probability, by features of the
// thought so far, that it may end there (or that nothing will come of it). Weights are fitted by
// python/musespark/lab/calibrate.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "decode/signals.h"

namespace musespark {

// Of the thoughts of the completion so far, together. Means are over the last kRecentTokens tokens
// (all, where there are fewer; 0 of none), counts n enter as ln(1 + n).
enum class Feature : std::size_t {
  margin,            // of the row after the sentence
  logprob,           // mean
  entropy,           // mean
  confidence,        // mean
  tokens,            // written so far, count
  borders,           // sentences that ended, this one included, count
  cues,              // cue words, count
  trial_confidence,  // c of the trial begun here, as ln((c + 1e-4) / (1 - c + 1e-4)); 0 without
  trial_streak,      // trials in a row that gave its answer, itself included, count; 0 without
};
inline constexpr std::array<std::string_view, 9> kFeatureNames{
    "margin",  "logprob", "entropy",          "confidence",  "tokens",
    "borders", "cues",    "trial_confidence", "trial_streak"};
inline constexpr std::size_t kRecentTokens = 32;

class Features {
 public:
  double& operator[](Feature feature) { return values_[static_cast<std::size_t>(feature)]; }
  const auto& values() const { return values_; }
  void add_trial(double confidence, std::int64_t streak);

 private:
  std::array<double, kFeatureNames.size()> values_{};
};

struct Stopper {
  std::array<double, kFeatureNames.size()> weights{};  // in the order of kFeatureNames
  double bias = 0;
  double threshold = 1;  // 0 to 1

  // Whether 1 / (1 + exp(-(bias + w . f))) is at least the threshold.
  bool stops(const Features& features) const;
};

// Throws InvalidRequest naming the field, where a number is not finite or out of its range.
void check_stopper(const Stopper& stopper, std::string_view field);

// The signals of the last thought tokens, and what was counted of all.
class RecentSignals {
 public:
  void take(const TokenSignals& signals, bool border, bool cue);
  // But for the trial's.
  Features features(float margin) const;

 private:
  using Ring = std::array<float, kRecentTokens>;
  double mean(const Ring& ring) const;

  Ring logprob_{}, entropy_{}, confidence_{};
  std::int64_t tokens_ = 0, borders_ = 0, cues_ = 0;
};

}  // namespace musespark

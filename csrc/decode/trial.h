// Trial answers: at the ends of a thought's sentences a fork of the sequence closes the thought and
// answers, a few tokens, greedily, as rows beside the others of a step, while the sequence goes on
// thinking. Where the answer is sure enough, the thought ends there: what was written meanwhile is
// taken back (nobody has seen it), and the fork becomes the sequence: its closing tokens, and of
// its answer what the sequence itself would have sampled there, with the first token that differs.
// So greedily the trial that ends a thought costs no rows. Not so (the closing tokens are written
// one in a step as any other) where what is sampled depends on more than the row and its place:
// penalties, a constraint; where it is reported with logprobs; where closed thoughts are demoted;
// and where closing words come first.
//
// The sequence waits for a trial only where what it does would depend on who is faster: before a
// thought or the sequence ends, before the next trial begins, and kTrialLead tokens ahead. Where
// its thoughts have no more time (ThinkingParams::deadline_s, reserve) it waits for none: the trial
// is given up.
//
// Sources: DEER (arXiv:2504.15895), confidence of a trial answer; Dynasor (arXiv:2412.20993),
// answers that stay the same.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/sequence.h"
#include "decode/sampler.h"
#include "decode/thinking.h"

namespace musespark {

inline constexpr std::int64_t kTrialLead = 64;
inline constexpr std::int64_t kMostTrialTokens = 64;

struct TrialParams {
  std::int64_t tokens = 0;  // of an answer at most; 0: there are no trials
  // The thought ends where the geometric mean of the probabilities of the answer's tokens is at
  // least `confident` and so many trials in a row, this one included, gave this answer; where a
  // stopper is given, by that in place of both.
  float confident = 0.0f;
  std::int64_t stable = 1;
  ThoughtStoppers stoppers;
  std::int64_t every = 1;  // thought tokens between two trials at least, and before the first
  std::vector<std::int32_t> close;  // what ends the thought and opens the answer

  bool on() const { return tokens > 0; }
};

// Throws InvalidRequest naming the field.
void check_trials(const TrialParams& params, const ThinkingParams& thinking, std::int64_t vocab);

// What one trial found.
struct TrialResult {
  std::int64_t at = 0;  // thought tokens before it
  std::vector<std::int32_t> answer;
  float confidence = 0.0f;
  std::int64_t rows = 0;  // computed for it, and not the sequence's
};

// What the row says that a trial begins at, should the thought end there: the marker, the first
// closing word (where there may be any), and what a stopper looks at.
struct TrialRow {
  SampledToken marker, word;
  Features features;
};

// A trial under way.
struct Trial {
  std::int64_t at;  // tokens of the sequence that it forked from, all with keys and values
  std::vector<std::int32_t> tokens;  // those of the sequence, the closing ones, the answer's
  Sequence kv;
  ThinkingControl control;  // the sequence's, at the fork
  TrialRow row;             // its Entry::trial_row, then
  std::int64_t tried_before;
  std::vector<float> logprobs{};  // of the answer's tokens
  // What the sequence would sample in their places, up to the first that is another.
  std::vector<SampledToken> sampled{};
  std::int64_t rows = 0;  // computed

  std::int64_t pending() const { return static_cast<std::int64_t>(tokens.size()) - kv.length(); }
};

}  // namespace musespark

// How many prefill rows a step may take beside decode rows, from measured times, and who gets them.
// Results do not depend on it: a row's bits are the same however prefill is cut.
//
// A step of d decode rows and some prefill rows is taken to last
//     alone(d) + unit * sum over the prefill rows of (1 + weight * keys before it)
// alone(d): measured in steps without prefill. While prefill waits, one such step comes now and
// then
//   and two where the number of decode rows has changed; the shorter of the two newest counts.
// unit: seconds of a row at the prompt's start. It follows what steps take quickly.
// weight: what a key costs of what the rest of a row does, given. Learnt from steps it would take
// in
//   whatever else differs between them. Where it is too large, the step from a long prompt to a
//   short one would be too long: rows grow no faster than the last full step's time allows.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

// The rows of a step. keys: tokens before a prefill row that it attends to, their mean over these
// rows and the layers.
struct StepRows {
  std::int64_t decode;
  std::int64_t prefill;
  double keys;
};

class PrefillPace {
 public:
  explicit PrefillPace(double weight) : weight_(weight) {}

  // That prefill is to add to a step with decode rows. The promise is 150 ms; measurements lag
  // behind what a step costs (the machine does other things, too).
  static constexpr double kAddedSeconds = 0.105;

  void observe(const StepRows& rows, double seconds);

  // Whether the next step is to leave prefill out, to measure that many decode rows.
  bool wants_alone(std::int64_t decode_rows) const;

  // What prefill may take of a step with decode rows: rows, if each came first in its prompt.
  double units() const;

  // And no more rows than these, wherever they come in their prompts.
  std::int64_t most_rows() const;

  // Units of a row that attends to so many keys.
  double cost(double keys) const { return 1 + weight_ * keys; }

  // Rows that fit in so many units, the first of which attends to `keys`.
  std::int64_t rows_within(double units, double keys) const;

 private:
  struct Alone {
    std::int64_t rows = 0;  // 0: none measured
    double seconds = 0;
    bool speaks_for(std::int64_t decode_rows) const {
      return rows > 0 && rows <= decode_rows && decode_rows <= rows + rows / 4;
    }
  };
  double alone_seconds(std::int64_t decode_rows) const;

  std::array<Alone, 2> alone_;  // newest first
  std::int64_t alone_in_row_ = 0, mixed_since_ = 0;
  double weight_;
  double unit_ = 0;       // 0: not known
  double most_rows_ = 0;  // 0: not known
};

// A sequence that prefills. limit: the most rows it may have in this step.
struct PrefillWork {
  std::int64_t limit;
  double keys;  // that its first row attends to
};

// Rows for each sequence, those first that have waited longest. Each gets the same part of
// `units` (and of `rows`); what some do not need goes to the first that do. There are always some.
std::vector<std::int64_t> share_prefill(const PrefillPace& pace, std::span<const PrefillWork> work,
                                        std::int64_t rows, double units);

}  // namespace musespark

// Drafts of what comes next, which one step of the model checks together: each token that is
// sampled from the model's own row is kept, and the first one that the draft had otherwise ends it.
// So what is written is what would have been written without, to the bit; only its time differs.
//
// Drafts are looked up: what followed where the last tokens stood before, in the prompt or in the
// completion (LLMA, arXiv:2304.04487; "prompt lookup decoding"). Or a drafter makes them, where
// there is one (draft_source.h). Of the two the one that is expected to give more tokens a second.
//
// How many tokens are tried depends on how often drafts were right, of this sequence, or of the
// drafter; and on what rows, and the drafter, cost in this engine. Where it does not pay,
// it pauses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

inline constexpr std::int64_t kMostDraft = 16;
inline constexpr std::int64_t kLeastMatch = 2;  // tokens that must stand before a draft

// Appends what followed the longest (of equals the latest) occurrence of the tokens' end, `most`
// tokens, or fewer where a negative one comes: a text that repeats is drafted on and on. Nothing
// where fewer than kLeastMatch match. Looks at all tokens.
void look_up(std::span<const std::int32_t> tokens, std::int64_t most,
             std::vector<std::int32_t>& draft);

// What the rows of a step cost, of steps with one sequence: 1 + slope * (rows - 1) times one row.
class RowCost {
 public:
  void observe(std::int64_t rows, double seconds);
  double of(std::int64_t rows) const { return 1 + slope_ * static_cast<double>(rows - 1); }
  // As many rows as take so long; 0: not known yet.
  double rows_in(double seconds) const { return singles_ < kLeastSingles ? 0 : seconds / single_; }
  // Whether the next step is to have one row: what one takes is not known well, or was long ago.
  bool wants_single() const { return singles_ < kLeastSingles || since_single_ >= kMostSince; }

 private:
  // A machine warms up, and a text grows.
  static constexpr std::int64_t kLeastSingles = 3, kMostSince = 64;
  double single_ = 0;  // seconds of one row
  double slope_ = 0.1;
  std::int64_t singles_ = 0, since_single_ = 0;
};

// What making a draft takes, in the time of rows: as such, and for each of its tokens.
struct DraftCost {
  double pass = 0, each = 0;
};

// How many tokens to try next.
class DraftLength {
 public:
  // `speed`: tokens that are expected in the time of one row, with the draft; 1 is without.
  struct Plan {
    std::int64_t count = 0;  // 0: none now
    double speed = 1;
  };
  // Of at most `most` tokens. Where none pays, a few now and then, to see whether that has changed:
  // so seldom that they cost little even if all are wrong.
  Plan next(const RowCost& cost, std::int64_t most, const DraftCost& draft = {});
  // What a draft of so many tokens is expected to give.
  double speed(const RowCost& cost, std::int64_t count, const DraftCost& draft = {}) const;
  // After a token that no draft was made for.
  void skipped() { ++since_; }
  // After the draft of the last plan: so many of its tokens were right.
  void tried(std::int64_t drafted, std::int64_t right);

 private:
  // Of tokens that were looked at, up to the first wrong one; older drafts count less.
  double right_ = 1.4, looked_at_ = 2;
  bool pays_ = true;        // as far as is known
  std::int64_t since_ = 0;  // tokens without a draft
};

}  // namespace musespark

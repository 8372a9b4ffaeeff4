// Drafts of what comes next, which one step of the model checks together: each token that is
// sampled from the model's own row is kept, and the first one that the draft had otherwise ends it.
// So what is written is what would have been written without, to the bit; only its time differs.
//
// Drafts are looked up: what followed where the last tokens stood before, in the prompt or in the
// completion (LLMA, arXiv:2304.04487; "prompt lookup decoding"). How many tokens are tried depends
// on how often drafts of the sequence were right, and on what rows cost in this engine; where it
// does not pay, it pauses.
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

 private:
  double single_ = 0;  // seconds of one row; 0: not known
  double slope_ = 0.1;
};

// How many tokens to try next, of one sequence.
class DraftLength {
 public:
  // At most `most`; 0: none now.
  std::int64_t next(const RowCost& cost, std::int64_t most) const;
  // After a token that no draft was made for.
  void skipped() { ++since_; }
  // After a draft: so many of its tokens were right.
  void tried(std::int64_t drafted, std::int64_t right);

 private:
  double right_ = 0.7;  // how often the next token of a draft is right
  std::int64_t since_ = 0, pause_ = 16;
};

}  // namespace musespark

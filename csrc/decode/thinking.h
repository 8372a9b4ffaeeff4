// How long a sequence thinks: a budget with a soft landing, and what ends a thought before it. What
// is done depends on the tokens so far and on the row of logits alone: not on time, not on other
// sequences.
//
// Thought tokens of the completion, those of all its thoughts together, the closing message counted
// (m tokens; none where it does not fit):
//
//   0            budget - m - landing         budget - m - landing / 2        budget - m   budget
//   |  as it likes  |  the marker that ends a    |  and the first sentence       |  message   |
//   |               |  thought is raised, more   |  that ends is the last:       |            |
//   |               |  with each token           |  message and marker follow    |  marker follows
//
// After the budget no other thought begins: where a turn's header does, the answer's is written.
// Characters are never cut: whatever is left of the
// budget suffices to end one that has begun.
//
// Sources: soft landing by a raised end marker and a message, github.com/ggml-org/llama.cpp
// (--reasoning-budget-message) and the Qwen3 report (arXiv:2505.09388, 4.6); margin: ThinkBrake
// (arXiv:2510.00546).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "decode/sampler.h"
#include "decode/stopper.h"
#include "decode/thoughts.h"

namespace musespark {

// What of a vocabulary matters here. One for all requests of a model.
//
//   bit  7 6 5   4    3         2              1 0
//        unused  cue  sentence  continuation   count
//
// count: bytes that the token's last character still needs (0 to 3); with `continuation` the token
// has none but continuation bytes, so many of them. sentence: a sentence may end with it. cue: a
// word that a thought turns at ("wait", "check").
struct TokenClasses {
  static constexpr std::uint8_t kCount = 3, kContinuation = 4, kSentence = 8, kCue = 16;
  explicit TokenClasses(std::vector<std::uint8_t> of_tokens);

  std::vector<std::uint8_t> of;      // [vocab]
  std::vector<std::uint64_t> whole;  // a bit for each token that leaves no character unfinished
};

// An id that may not follow these: what would begin a thought.
struct ThoughtOpening {
  std::vector<std::int32_t> after;
  std::int32_t id;
};

enum class ThoughtStop : std::uint32_t {
  none,       // no thought has ended
  natural,    // the model ended it
  budget,     // the budget, or the model in its landing
  confident,  // the margin, a trial answer, or a stopper
  stable,     // trial answers that stayed the same, decode/trial.h
  hopeless,   // a stopper for thoughts that nothing will come of
  loop,       // it repeated itself
  deadline,   // its time was over
};
std::string_view to_string(ThoughtStop stop);

// What ends a thought by its signals; asked in this order.
struct ThoughtStoppers {
  std::optional<Stopper> confident, hopeless;

  bool any() const { return confident || hopeless; }
  // ThoughtStop::none: it goes on.
  ThoughtStop judge(const Features& features) const;
};

struct ThinkingParams {
  std::optional<std::int64_t> budget;  // thought tokens, >= 0; none: no limit
  std::int64_t landing = 0;            // >= 0
  float landing_bias = 0.0f;           // what the end's logit is raised by at the landing's end
  // A thought ends after a sentence where the end's logit is at most this below the largest; none:
  // off. In nats.
  std::optional<float> margin;
  std::int64_t least = 0;  // thought tokens before the margin counts
  // A thought ends when so many of its tokens in a row repeat what stood before them, and a period
  // of theirs more than thrice; 0: off.
  std::int64_t loop = 0;
  bool signals = false;      // take them, of each thought token; stoppers need them
  ThoughtStoppers stoppers;  // asked at each sentence's end; those of trials: decode/trial.h
  std::optional<double> deadline_s;  // from submission, >= 0: then thoughts are closed
  // Tokens that are to be written after thoughts, before the request's own deadline: thoughts are
  // closed when it leaves no more time than these take at the sequence's pace. 0: none.
  std::int64_t reserve = 0;
  std::vector<std::int32_t> message;  // written before the marker where the model did not end it
  std::int32_t close = -1;            // the marker
  std::vector<ThoughtOpening> openings;
  // Where no thought may begin any more: after these the answer's header is written. Empty: it is
  // left to the model.
  std::vector<std::int32_t> header, answer;
  std::shared_ptr<const TokenClasses> classes;  // null: nothing is to be watched

  bool watches() const { return classes != nullptr; }
  // Whether the message fits into what `used` thought tokens leave of the budget.
  bool fits_message(std::int64_t used) const;
};

// Throw InvalidRequest naming the field. `thoughts`, `thinking`: of the same request.
void check_stoppers(const ThoughtStoppers& stoppers, const ThinkingParams& thinking,
                    const std::string& field);
void check_thinking(const ThinkingParams& params, const ThoughtParams& thoughts,
                    std::int64_t vocab);

// The longest tail of a sequence that repeats what stood before it. Periods up to kPeriods.
class RepeatFinder {
 public:
  static constexpr std::int64_t kPeriods = 128;
  void restart() { runs_.assign(kPeriods, 0); }
  // Takes in the last of the tokens since restart().
  void take(std::span<const std::int32_t> tokens);
  // Whether at least `tokens` in a row repeat, and each period thrice or more after its first time.
  bool repeats(std::int64_t tokens) const;

 private:
  std::vector<std::int32_t> runs_;  // [kPeriods] equal pairs (i, i - period), up to now
};

// Of one sequence.
class ThinkingControl {
 public:
  // What may be chosen of a row, for the sequence's next token; `tokens` are all of its, the prompt
  // the first `prompt` of them; `late`: past the deadline. Called once for each token. `forced` is
  // that token, or -1.
  struct Rule {
    std::int32_t forced = -1;
    std::vector<std::int32_t> barred{};
    std::int32_t raised = -1;  // this id's logit, by `by`
    float by = 0.0f;
    bool whole = false;  // none that leaves a character unfinished
  };
  Rule next(const ThinkingParams& params, const ThoughtTracker& thoughts,
            std::span<const std::int32_t> tokens, std::int64_t prompt, const float* row, bool late);
  // After the token was chosen; with its signals, where they are taken.
  void took(const ThinkingParams& params, const ThoughtTracker& thoughts,
            std::span<const std::int32_t> tokens, const std::optional<TokenSignals>& signals);

  // Whether the last token ends a sentence of a thought that goes on.
  bool at_sentence_end(const ThinkingParams& params, const ThoughtTracker& thoughts,
                       std::span<const std::int32_t> tokens) const;
  // Of the thought under way, `row` what follows its last token.
  Features features(const ThinkingParams& params, const float* row) const;
  // The tokens that end the thought are to be written now; `tokens` is not empty.
  void end_with(std::vector<std::int32_t> tokens, ThoughtStop why);

  ThoughtStop stop() const { return stop_; }  // of the last thought that ended

 private:
  Rule end(const ThinkingParams& params, ThoughtStop why, bool with_message);
  ThoughtStop sentence_stop(const ThinkingParams& params, std::int64_t used,
                            const float* row) const;
  Rule outside(const ThinkingParams& params, std::span<const std::int32_t> tokens);
  Rule force(std::vector<std::int32_t> tokens);
  bool unfinished() const { return needed_ > 0; }

  std::vector<std::int32_t> forced_;  // what is to be written, the next one last
  ThoughtStop why_ = ThoughtStop::natural;
  ThoughtStop stop_ = ThoughtStop::none;
  bool inside_ = false;
  bool ending_ = false;      // its end is being written
  std::int32_t needed_ = 0;  // bytes of the character under way
  RepeatFinder repeats_;
  RecentSignals recent_;
};

}  // namespace musespark

// Who makes drafts for the sequence that runs alone: a block drafter (draft_context.h) or a small
// model with the same tokens (draft_model.h).
//
// A source belongs to no request: it follows whatever text it is asked about. What it drafts
// decides no result, so it may know less than there is, or nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "cache/prefix_tree.h"
#include "decode/engine.h"
#include "model/state_log.h"

namespace musespark {

class DraftSource {
 public:
  // A sequence's text; its first `prompt` tokens were given.
  struct Text {
    RequestId id;
    PrefixKey key;
    std::span<const std::int32_t> tokens;
    std::int64_t prompt;
  };
  // The token that a row of logits [vocab of the model] drafts in place `index` after the text's
  // last; negative: the draft ends before it.
  using Pick = std::function<std::int32_t(const float* row, std::int64_t index)>;

  virtual ~DraftSource() = default;

  // The most tokens of a draft; whether one takes the same time however short it is; positions
  // after a text's last token that it computes.
  virtual std::int64_t most() const = 0;
  virtual bool one_pass() const = 0;
  virtual std::int64_t ahead() const = 0;

  // Where a step that computes positions from .. to - 1 of a text is to log what layers give; null
  // where nothing of it is wanted.
  virtual StateLog* log(const Text& text, std::int64_t from, std::int64_t to) = 0;
  // That step is done, and the text is computed up to `to`: drafts may have been wrong.
  virtual void keep(const Text& text, std::int64_t to) = 0;
  // No step is under way.
  virtual void forget_log() = 0;

  // Whether it can draft what follows a text whose last token alone is not computed.
  virtual bool knows(const Text& text) const = 0;
  // Catches up with a text where that takes more than `most` positions, by no more of them than a
  // step may have; whether it then takes no more. False too where `interrupted` (asked before each
  // layer) said so. Throws MemoryBudgetExceeded, as draft() does.
  virtual bool settle(const Text& text, std::int64_t most,
                      const std::function<bool()>& interrupted) = 0;
  // A step has no draft of it.
  virtual void rest() = 0;
  // Drafts up to `count` tokens of a text that settle() was true of, calling `pick` for one after
  // the other.
  virtual bool draft(const Text& text, std::int64_t count, const std::function<bool()>& interrupted,
                     const Pick& pick) = 0;

  // Tokens of a text that it knows.
  virtual std::int64_t length() const = 0;
};

}  // namespace musespark

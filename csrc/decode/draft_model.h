// Drafts of a small model that has the tokens of the large one: its own greedy continuation, or
// as the sequence's sampler picks from its rows (Leviathan et al., arXiv:2211.17192, without
// rejection sampling: the large model's own sampling decides).
//
// Its keys and values are those of the last text it drafted for; another text keeps what both begin
// with. A long prompt is computed by it as well, piece by piece beside the first steps: until then
// they have no draft of it.
//
// Families pad their vocabularies to sizes of their own. Ids that one of the two models has are not
// drafted by it, and not for it: texts with an id that this one does not have, it does not know.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "decode/draft_source.h"
#include "model/text_model.h"

namespace musespark {

class DraftModel : public DraftSource {
 public:
  // For a model of `vocab` tokens, of which those that both have mean the same, and texts of at
  // most `tokens`. Throws UnsupportedModel for ropes with two sets of factors.
  DraftModel(TextModel& model, std::int64_t vocab, std::int64_t tokens);

  std::int64_t most() const override { return 8; }
  bool one_pass() const override { return false; }
  std::int64_t ahead() const override { return most(); }
  StateLog* log(const Text&, std::int64_t, std::int64_t) override { return nullptr; }
  void keep(const Text&, std::int64_t) override {}
  void forget_log() override {}
  bool knows(const Text& text) const override;
  bool settle(const Text& text, std::int64_t most,
              const std::function<bool()>& interrupted) override;
  void rest() override {}
  bool draft(const Text& text, std::int64_t count, const std::function<bool()>& interrupted,
             const Pick& pick) override;
  std::int64_t length() const override { return kv_.length(); }

 private:
  void follow(const Text& text);
  bool compute(std::span<const std::int32_t> tokens, bool logits,
               const std::function<bool()>& interrupted);

  TextModel& model_;
  PagePool pool_;
  Sequence kv_;
  std::vector<std::int32_t> tokens_;  // of kv_
  mutable RequestId id_ = -1;         // whose text has been looked at
  mutable std::size_t read_ = 0;      // tokens of it that it can read, the first other one next
  std::vector<float> row_;            // [of both vocabularies the larger]; -inf where it has none
};

}  // namespace musespark

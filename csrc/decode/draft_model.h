// Drafts of a small model that has the vocabulary of the large one: its own greedy continuation, or
// as the sequence's sampler picks from its rows (Leviathan et al., arXiv:2211.17192, without
// rejection sampling: the large model's own sampling decides).
//
// Its keys and values are those of the last text it drafted for; another text keeps what both begin
// with. A long prompt is computed by it as well, at the first draft.
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
  // For a model of `vocab` tokens and texts of at most `tokens`. Throws InvalidRequest naming both
  // values where the vocabularies differ, UnsupportedModel for ropes with two sets of factors.
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
  bool catch_up(const Text& text, std::int64_t to, const std::function<bool()>& interrupted);

  TextModel& model_;
  PagePool pool_;
  Sequence kv_;
  std::vector<std::int32_t> tokens_;  // of kv_
  mutable RequestId id_ = -1;         // whose prompt has been looked at
  mutable bool readable_ = false;     // it has no rows of images
  std::vector<float> row_;
};

}  // namespace musespark

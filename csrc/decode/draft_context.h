// What a block drafter (model/drafter.h) knows of one text: keys and values made of what layers of
// the model gave for its tokens, step by step, while the text's sequence runs alone.
//
//     first_               first_ + kv_.length()        end
//       |  keys and values   |   pending_: states so far  |
//
// It belongs to a text, not to a sequence: whichever begins with the same tokens, under the same
// adapter and ropes, goes on with it (the next turn of a conversation, a prompt that is sent
// again). What has been computed elsewhere (a prefix that was kept, steps beside others) is not
// known: the context then begins anew with the next token, and knows less for a while. Drafts are
// worse then; results are the same.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "decode/draft_source.h"
#include "model/drafter.h"

namespace musespark {

class DraftContext : public DraftSource {
 public:
  // Of texts of at most `tokens` tokens.
  DraftContext(Drafter& drafter, std::int64_t tokens);

  std::int64_t most() const override { return drafter_.spec().block - 1; }
  bool one_pass() const override { return true; }
  std::int64_t ahead() const override { return drafter_.spec().block; }
  StateLog* log(const Text& text, std::int64_t from, std::int64_t to) override;
  void keep(const Text& text, std::int64_t to) override;
  void forget_log() override { logged_from_ = -1; }
  bool knows(const Text& text) const override;
  bool settle(const Text& text, std::int64_t most,
              const std::function<bool()>& interrupted) override;
  void rest() override;
  bool draft(const Text& text, std::int64_t count, const std::function<bool()>& interrupted,
             const Pick& pick) override;
  std::int64_t length() const override { return kv_.length() + pending(); }

 private:
  std::int64_t pending() const;
  void make_keys();
  std::int64_t end() const { return first_ + length(); }
  void follow(const Text& text, std::int64_t computed);
  void forget_taken_back(const Text& text, std::int64_t computed);
  bool cut(std::int64_t to);
  void begin_at(std::int64_t position);
  void forget_all_but(std::int64_t count);

  Drafter& drafter_;
  PagePool pool_;
  Sequence kv_;
  std::int64_t first_ = 0;
  std::vector<float> pending_;
  RequestId id_ = -1;
  PrefixKey key_;
  std::vector<std::int32_t> tokens_;  // of the text, at least up to the end
  StateLog log_;
  std::vector<float> logits_;
  std::int64_t logged_from_ = -1;  // by the step under way; -1: nothing is logged
};

}  // namespace musespark

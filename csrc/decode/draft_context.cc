#include "decode/draft_context.h"

#include <algorithm>
#include <utility>

namespace musespark {
namespace {

// The most bytes that the context of a text has.
std::int64_t bytes_of(const Drafter& drafter, std::int64_t tokens) {
  const std::int64_t step = std::max(Drafter::kMostRows, drafter.spec().block);
  return PagePool(drafter.kv_layout(), 0).bytes_for(tokens + drafter.spec().block, step);
}

}  // namespace

DraftContext::DraftContext(Drafter& drafter, std::int64_t tokens)
    : drafter_(drafter), pool_(drafter.kv_layout(), bytes_of(drafter, tokens)), kv_(pool_) {
  log_.layers = drafter.spec().target_layers;
}

std::int64_t DraftContext::pending() const {
  return static_cast<std::int64_t>(pending_.size()) / drafter_.state_width();
}

void DraftContext::begin_at(std::int64_t position) {
  kv_ = Sequence(pool_);
  pending_.clear();
  first_ = position;
}

// Whether it could be cut back to where position `to` is the next.
bool DraftContext::cut(std::int64_t to) {
  if (to <= first_ || to > end()) return false;
  const std::int64_t made = first_ + kv_.length();
  if (to >= made) {
    pending_.resize(static_cast<std::size_t>((to - made) * drafter_.state_width()));
    return true;
  }
  pending_.clear();
  return kv_.truncate(to - first_) == to - first_;
}

// Becomes the context of a text of which `computed` tokens have keys and values.
void DraftContext::follow(const Text& text, std::int64_t computed) {
  if (text.id == id_ && text.key == key_) return;
  const auto known = std::min<std::int64_t>(computed, static_cast<std::int64_t>(tokens_.size()));
  const bool same = text.key == key_ && known == computed &&
                    std::equal(tokens_.begin(), tokens_.begin() + known, text.tokens.begin());
  if (same && cut(computed)) {
    tokens_.resize(static_cast<std::size_t>(computed));
  } else {
    tokens_.clear();
    begin_at(computed);
  }
  id_ = text.id;
  key_ = text.key;
}

// Where tokens of the text were taken back: what is known of them and of those after.
void DraftContext::forget_taken_back(const Text& text, std::int64_t computed) {
  const auto known = std::min<std::int64_t>(computed, static_cast<std::int64_t>(tokens_.size()));
  const auto first =
      std::mismatch(tokens_.begin(), tokens_.begin() + known, text.tokens.begin()).first;
  const std::int64_t same = first - tokens_.begin();
  if (same == static_cast<std::int64_t>(tokens_.size())) return;
  tokens_.resize(static_cast<std::size_t>(same));
  if (same < end() && !cut(same)) begin_at(computed);
}

StateLog* DraftContext::log(const Text& text, std::int64_t from, std::int64_t to) {
  forget_log();
  follow(text, from);
  // Of a long prompt only what the first block after it sees.
  const std::int64_t seen = drafter_.reach() == 0 ? 0 : text.prompt - drafter_.reach();
  log_.skip = std::max<std::int64_t>(0, seen - from);
  if (log_.skip >= to - from) return nullptr;
  forget_taken_back(text, from);
  if (log_.skip > 0 || from != end()) begin_at(from + log_.skip);
  logged_from_ = from + log_.skip;
  return &log_;
}

void DraftContext::keep(const Text& text, std::int64_t to) {
  if (logged_from_ < 0) return;
  const std::int64_t count = (to - logged_from_) * drafter_.state_width();
  pending_.insert(pending_.end(), log_.rows.begin(), log_.rows.begin() + count);
  if (const auto have = static_cast<std::int64_t>(tokens_.size()); have < to) {
    tokens_.insert(tokens_.end(), text.tokens.begin() + have, text.tokens.begin() + to);
  }
  forget_log();
}

bool DraftContext::knows(const Text& text) const {
  return text.id == id_ && text.key == key_ && end() > first_ &&
         end() + 1 == static_cast<std::int64_t>(text.tokens.size());
}

// Of more positions than a block sees nothing needs to be made.
void DraftContext::forget_all_but(std::int64_t count) {
  const std::int64_t gone = (pending() - count) * drafter_.state_width();
  std::vector<float> last(pending_.begin() + gone, pending_.end());
  begin_at(end() - count);
  pending_ = std::move(last);
}

// Makes keys and values of what is pending.
void DraftContext::make_keys() {
  if (drafter_.reach() > 0 && pending() > drafter_.reach()) forget_all_but(drafter_.reach());
  while (pending() > 0) {
    const std::int64_t rows = std::min(pending(), Drafter::kMostRows);
    drafter_.extend({kv_, first_}, pending_.data(), rows);
    pending_.erase(pending_.begin(), pending_.begin() + rows * drafter_.state_width());
  }
}

bool DraftContext::settle(const Text&, std::int64_t most, const std::function<bool()>&) {
  if (pending() > most) make_keys();
  return true;
}

// States take more room than keys and values.
void DraftContext::rest() {
  if (pending() > Drafter::kMostRows) make_keys();
}

bool DraftContext::draft(const Text& text, std::int64_t count,
                         const std::function<bool()>& interrupted, const Pick& pick) {
  make_keys();
  const std::int64_t vocab = drafter_.vocab();
  logits_.resize(static_cast<std::size_t>(count * vocab));
  const std::int32_t last = text.tokens.back();
  if (!drafter_.draft({kv_, first_}, last, count, interrupted, logits_.data())) return false;
  for (std::int64_t i = 0; i < count; ++i) {
    if (pick(logits_.data() + i * vocab, i) < 0) break;
  }
  return true;
}

}  // namespace musespark

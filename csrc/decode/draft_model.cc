#include "decode/draft_model.h"

#include <algorithm>
#include <limits>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kMostRows = 512;  // of a step
// The logit of an id that the drafting model does not have: finite, as the sampler wants them.
constexpr float kNever = std::numeric_limits<float>::lowest();

const KvLayout& checked(const TextModel& model) {
  if (model.original_context() > 0) {
    throw UnsupportedModel("drafter: ropes with short_factors, which change with the length");
  }
  return model.kv_layout();
}

}  // namespace

DraftModel::DraftModel(TextModel& model, std::int64_t vocab, std::int64_t tokens)
    : model_(model),
      pool_(checked(model), PagePool(model.kv_layout(), 0).bytes_for(tokens + most(), kMostRows)),
      kv_(pool_),
      row_(static_cast<std::size_t>(std::max(vocab, model.spec().vocab)), kNever) {}

bool DraftModel::knows(const Text& text) const {
  if (text.id != id_) {
    id_ = text.id;
    read_ = 0;
  }
  const auto has = [&](std::int32_t token) { return token >= 0 && token < model_.spec().vocab; };
  while (read_ < text.tokens.size() && has(text.tokens[read_])) ++read_;
  const auto size = static_cast<std::int64_t>(text.tokens.size());
  return read_ == text.tokens.size() && size + ahead() <= model_.spec().max_context;
}

// Keeps what the text begins with, but for its last token.
void DraftModel::follow(const Text& text) {
  const auto most = static_cast<std::ptrdiff_t>(std::min(text.tokens.size() - 1, tokens_.size()));
  const auto differs =
      std::mismatch(tokens_.begin(), tokens_.begin() + most, text.tokens.begin()).first;
  kv_.truncate(differs - tokens_.begin());
  tokens_.resize(static_cast<std::size_t>(kv_.length()));
}

// One step; the last token's logits into row_.
bool DraftModel::compute(std::span<const std::int32_t> tokens, bool logits,
                         const std::function<bool()>& interrupted) {
  const StepSpan span{&kv_, tokens.data(), static_cast<std::int64_t>(tokens.size()),
                      logits ? StepSpan::Logits::last : StepSpan::Logits::none};
  const StepControl control{interrupted};
  if (model_.forward({&span, 1}, control, row_.data()) != StepOutcome::done) return false;
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  return true;
}

bool DraftModel::settle(const Text& text, std::int64_t most,
                        const std::function<bool()>& interrupted) {
  follow(text);
  const auto left = [&] { return static_cast<std::int64_t>(text.tokens.size()) - kv_.length(); };
  if (left() <= most) return true;
  const std::int64_t rows = std::min(kMostRows, left() - 1);
  const auto next =
      text.tokens.subspan(static_cast<std::size_t>(kv_.length()), static_cast<std::size_t>(rows));
  if (!compute(next, false, interrupted)) return false;
  kv_.accept(kv_.length());
  return left() <= most;
}

bool DraftModel::draft(const Text& text, std::int64_t count,
                       const std::function<bool()>& interrupted, const Pick& pick) {
  const auto rest = text.tokens.subspan(static_cast<std::size_t>(kv_.length()));
  if (!compute(rest, true, interrupted)) return false;
  kv_.accept(kv_.length());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t token = pick(row_.data(), i);
    if (token < 0 || i + 1 == count) break;
    if (!compute({&token, 1}, true, interrupted)) break;  // with what there is
  }
  return true;
}

}  // namespace musespark

#include "decode/draft_model.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kMostRows = 512;  // of a step

const KvLayout& checked(const TextModel& model, std::int64_t vocab) {
  if (model.spec().vocab != vocab) {
    throw InvalidRequest("drafter: vocab is " + std::to_string(model.spec().vocab) +
                         ", the model's is " + std::to_string(vocab) +
                         ": a model that drafts has the same tokens");
  }
  if (model.original_context() > 0) {
    throw UnsupportedModel("drafter: ropes with short_factors, which change with the length");
  }
  return model.kv_layout();
}

}  // namespace

DraftModel::DraftModel(TextModel& model, std::int64_t vocab, std::int64_t tokens)
    : model_(model),
      pool_(checked(model, vocab),
            PagePool(model.kv_layout(), 0).bytes_for(tokens + most(), kMostRows)),
      kv_(pool_),
      row_(static_cast<std::size_t>(vocab)) {}

bool DraftModel::knows(const Text& text) const {
  if (text.id != id_) {
    id_ = text.id;
    const auto prompt = text.tokens.first(static_cast<std::size_t>(text.prompt));
    readable_ = std::ranges::all_of(prompt, [](std::int32_t token) { return token >= 0; });
  }
  const auto size = static_cast<std::int64_t>(text.tokens.size());
  return readable_ && size + ahead() <= model_.spec().max_context;
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

// Computes the text up to position `to`, with the logits after it where that is its end.
bool DraftModel::catch_up(const Text& text, std::int64_t to,
                          const std::function<bool()>& interrupted) {
  while (kv_.length() < to) {
    const std::int64_t rows = std::min(kMostRows, to - kv_.length());
    const auto part =
        text.tokens.subspan(static_cast<std::size_t>(kv_.length()), static_cast<std::size_t>(rows));
    const bool end = kv_.length() + rows == static_cast<std::int64_t>(text.tokens.size());
    if (!compute(part, end, interrupted)) return false;
    kv_.accept(kv_.length());
  }
  return true;
}

bool DraftModel::settle(const Text& text, std::int64_t most,
                        const std::function<bool()>& interrupted) {
  follow(text);
  const auto size = static_cast<std::int64_t>(text.tokens.size());
  return size - kv_.length() <= most || catch_up(text, size - 1, interrupted);
}

bool DraftModel::draft(const Text& text, std::int64_t count,
                       const std::function<bool()>& interrupted, const Pick& pick) {
  follow(text);
  if (!catch_up(text, static_cast<std::int64_t>(text.tokens.size()), interrupted)) return false;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t token = pick(row_.data(), i);
    if (token < 0 || i + 1 == count) break;
    if (!compute({&token, 1}, true, interrupted)) break;  // with what there is
  }
  return true;
}

}  // namespace musespark

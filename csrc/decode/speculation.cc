#include "decode/speculation.h"

#include <algorithm>

#include "decode/engine_impl.h"

namespace musespark {
namespace {

constexpr std::int64_t kLongestMatch = 16;
constexpr std::int64_t kMostPause = 512;
constexpr double kGain = 1.02;  // least ratio of speeds for which a draft is made

}  // namespace

void look_up(std::span<const std::int32_t> tokens, std::int64_t most,
             std::vector<std::int32_t>& draft) {
  const auto size = static_cast<std::int64_t>(tokens.size());
  if (size <= kLeastMatch || most < 1) return;
  const std::int32_t* t = tokens.data();
  std::int64_t best = kLeastMatch - 1, at = -1;
  for (std::int64_t end = size - 1; end >= kLeastMatch && best < kLongestMatch; --end) {
    if (t[end - 1] != t[size - 1]) continue;
    std::int64_t match = 1;
    while (match < kLongestMatch && match < end && t[end - 1 - match] == t[size - 1 - match]) {
      ++match;
    }
    if (match <= best) continue;
    best = match;
    at = end;
  }
  if (at < 0) return;
  for (std::int64_t i = 0; i < most; ++i) {
    const std::int32_t token =
        at + i < size ? t[at + i] : draft[draft.size() - static_cast<std::size_t>(size - at)];
    if (token < 0) return;
    draft.push_back(token);
  }
}

void RowCost::observe(std::int64_t rows, double seconds) {
  if (rows == 1) {
    single_ = single_ == 0 ? seconds : single_ + 0.1 * (seconds - single_);
    return;
  }
  if (single_ == 0) return;
  const double slope = std::max(0.0, (seconds / single_ - 1) / static_cast<double>(rows - 1));
  slope_ += 0.1 * (std::min(slope, 1.0) - slope_);
}

std::int64_t DraftLength::next(const RowCost& cost, std::int64_t most) const {
  std::int64_t best = 0;
  double gain = kGain, expected = 1, term = 1;
  for (std::int64_t count = 1; count <= most; ++count) {
    term *= right_;
    expected += term;
    if (const double speed = expected / cost.of(count + 1); speed > gain) {
      gain = speed;
      best = count;
    }
  }
  if (best == 0 && since_ >= pause_) return std::min<std::int64_t>(2, most);
  return best;
}

void DraftLength::tried(std::int64_t drafted, std::int64_t right) {
  const double shown =
      static_cast<double>(right) / static_cast<double>(std::min(right + 1, drafted));
  right_ += 0.25 * (std::min(shown, 1.0) - right_);
  pause_ = right > 0 ? 16 : std::min(2 * pause_, kMostPause);
  since_ = 0;
}

// A draft for a sequence that gets one row of the next step, into entry.draft: its last token and
// what may follow.
void Engine::Impl::make_draft(Entry& entry) {
  entry.draft.clear();
  const RequestParams& params = entry.params;
  // The prompt's last row has none: what is kept for the next turn ends there.
  const bool alone =
      running.size() == 1 && waiting.empty() && entry.size() > entry.stats.prompt_tokens;
  if (params.draft_tokens == 0 || !alone || !entry.samples() || params.constraint ||
      params.trials.on() || entry.evicts() || entry.demotes()) {
    return;
  }
  const std::int64_t size = entry.size();
  const std::int64_t room =
      std::min({params.draft_tokens, entry.reserved_tokens - size, options.context - size - 1,
                options.prefill_chunk - 1, kMostDraft});
  const std::int64_t most = entry.drafting.next(row_cost, room);
  const bool same_rope = !entry.short_rope || size + most <= model.original_context();
  entry.draft.push_back(entry.tokens.back());
  if (same_rope) look_up(entry.tokens, most, entry.draft);
  if (entry.draft.size() > 1) return;
  entry.draft.clear();
  entry.drafting.skipped();
}

// Samples row after row while the draft is right; `rows` are those of entry.draft.
void Engine::Impl::book_draft(Entry& entry, const float* rows, Clock::time_point now) {
  const std::vector<std::int32_t> draft = std::exchange(entry.draft, {});
  const auto count = static_cast<std::int64_t>(draft.size());
  const std::int64_t first = entry.kv->length() - count;
  std::optional<FinishReason> end;
  std::int64_t kept = 0;
  std::string error;
  while (kept < count && !end && error.empty()) {
    const Job job{.entry = &entry, .row = rows + kept * vocab};
    try {
      SampledToken token = choose(entry, job, scratch[0]);
      ++kept;
      const bool right = kept < count && token.token == draft[static_cast<std::size_t>(kept)];
      end = append_sampled(entry, std::move(token), now);
      if (!right) break;
    } catch (const BadLogits& bad) {
      error = bad.what();
    }
  }
  const std::int64_t right = std::max<std::int64_t>(kept - 1, 0);
  entry.stats.drafted_tokens += count - 1;
  entry.stats.accepted_tokens += right;
  entry.drafting.tried(count - 1, right);
  entry.kv->truncate(first + std::max<std::int64_t>(kept, 1));
  remember(entry);
  entry.kv->accept(entry.kv->length());
  settle_thoughts(entry);
  if (!error.empty()) {
    finish(entry, FinishReason::error, ErrorKind::bad_logits, std::move(error));
  } else if (end) {
    end_sampled(entry, *end);
  }
}

}  // namespace musespark

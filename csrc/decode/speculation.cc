#include "decode/speculation.h"

#include <algorithm>
#include <limits>

#include "decode/engine_impl.h"

namespace musespark {
namespace {

constexpr std::int64_t kLongestMatch = 16;
constexpr double kGain = 1.02;    // least ratio of speeds for which a draft is made
constexpr double kSought = 0.01;  // of the time without drafts, to see whether they pay by now
// What is left of a draft's weight after the next; of few drafts now and then the last say more.
constexpr double kKept = 0.95, kKeptResting = 0.5;

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
    since_single_ = 0;
    const double share = std::max(0.1, 1.0 / static_cast<double>(++singles_));
    single_ += share * (seconds - single_);
    return;
  }
  ++since_single_;
  if (singles_ == 0) return;
  const double slope = std::max(0.0, (seconds / single_ - 1) / static_cast<double>(rows - 1));
  slope_ += 0.1 * (std::min(slope, 1.0) - slope_);
}

double DraftLength::speed(const RowCost& cost, std::int64_t count, const DraftCost& draft) const {
  const double share = right_ / looked_at_;
  double expected = 1, term = 1;
  for (std::int64_t i = 0; i < count; ++i) {
    term *= share;
    expected += term;
  }
  return expected / (cost.of(count + 1) + draft.pass + draft.each * static_cast<double>(count));
}

DraftLength::Plan DraftLength::next(const RowCost& cost, std::int64_t most,
                                    const DraftCost& draft) {
  Plan best{0, kGain};
  for (std::int64_t count = 1; count <= most; ++count) {
    if (const double gain = speed(cost, count, draft); gain > best.speed) best = {count, gain};
  }
  pays_ = best.count > 0;
  if (pays_) return best;
  const std::int64_t few = std::min<std::int64_t>(2, most);
  const double wasted = cost.of(few + 1) + draft.pass + draft.each * static_cast<double>(few) - 1;
  if (few < 1 || kSought * static_cast<double>(since_) < wasted) return {0, 1};
  return {few, speed(cost, few, draft)};
}

void DraftLength::tried(std::int64_t drafted, std::int64_t right) {
  const double kept = pays_ ? kKept : kKeptResting;
  right_ = kept * right_ + static_cast<double>(right);
  looked_at_ = kept * looked_at_ + static_cast<double>(std::min(right + 1, drafted));
  since_ = 0;
}

// Whether drafts may be made of what follows, some time.
bool Engine::Impl::may_draft(const Entry& entry) const {
  const RequestParams& params = entry.params;
  return params.draft_tokens > 0 && entry.samples() && !params.constraint && !entry.evicts() &&
         !entry.demotes();
}

DraftSource::Text Engine::Impl::text_of(const Entry& entry) {
  return {entry.id, entry.prefix_key(), entry.tokens, entry.stats.prompt_tokens};
}

// Where a step is to log the states of the sequence's next `count` rows, for the request or for a
// drafter; or null.
StateLog* Engine::Impl::states_wanted(Entry& entry, std::int64_t count) {
  if (entry.gives_states()) {
    return entry.length() >= entry.params.logits_from ? &entry.states : nullptr;
  }
  if (!drafting || running.size() != 1 || !may_draft(entry)) return nullptr;
  return drafting->source.log(text_of(entry), entry.length(), entry.length() + count);
}

// How many tokens of the sequence's next step may be a draft's; 0: it gets its one row.
std::int64_t Engine::Impl::draft_room(const Entry& entry) const {
  // The prompt's last row has none: what is kept for the next turn ends there.
  const bool alone =
      running.size() == 1 && waiting.empty() && entry.size() > entry.stats.prompt_tokens;
  if (!alone || !may_draft(entry)) return 0;
  if (entry.trial || wants_trial(entry)) return 0;
  if (row_cost.wants_single() && !entry.params.draft_eagerly) return 0;
  const std::int64_t size = entry.size();
  const std::int64_t room =
      std::min({entry.params.draft_tokens, entry.reserved_tokens - size, options.context - size - 1,
                options.prefill_chunk - 1, kMostDraft});
  const bool same_rope = !entry.short_rope || size + room <= model.original_context();
  return same_rope ? room : 0;
}

// How many tokens the drafter is to draft for a sequence with so much room.
DraftLength::Plan Engine::Impl::plan_drafter(const Entry& entry, std::int64_t room) {
  if (!drafting) return {};
  const DraftSource& source = drafting->source;
  if (entry.size() + source.ahead() > options.context || !source.knows(text_of(entry))) return {};
  const std::int64_t most = std::min(room, source.most());
  if (entry.params.draft_eagerly) return {most, std::numeric_limits<double>::infinity()};
  const double rows = row_cost.rows_in(drafting->cost_s);
  const DraftCost cost{source.one_pass() ? rows : 0, source.one_pass() ? 0 : rows};
  return drafting->length.next(row_cost, most, cost);
}

// A draft for a sequence that gets one row of the next step, into entry.draft: its last token and
// what may follow. Or the wish for one of the drafter's (draft_if_wanted).
void Engine::Impl::make_draft(Entry& entry) {
  entry.draft.clear();
  const std::int64_t room = draft_room(entry);
  if (room < 1) return;
  const bool eager = entry.params.draft_eagerly;
  entry.draft.push_back(entry.tokens.back());
  look_up(entry.tokens, eager ? room : entry.drafting.next(row_cost, room).count, entry.draft);
  const auto found = static_cast<std::int64_t>(entry.draft.size()) - 1;
  const DraftLength::Plan plan = plan_drafter(entry, room);
  const bool by_drafter =
      plan.count > 0 && (found == 0 || plan.speed > entry.drafting.speed(row_cost, found));
  if (by_drafter) {
    drafting->wanted = plan.count;
  } else if (drafting) {
    drafting->length.skipped();
  }
  if (found > 0 && !by_drafter) return;
  entry.draft.clear();
  entry.drafting.skipped();
}

// What the drafter says may follow, in place of the one row that the step has, where that is
// wanted. Without the mutex: what it changes is the step's thread's alone.
void Engine::Impl::draft_if_wanted() {
  const auto begin = Clock::now();
  if (const std::int64_t count = std::exchange(drafting->wanted, 0); count > 0) {
    Entry& entry = *span_owners[0].entry;
    const bool ready = drafting->source.settle(text_of(entry), kMostDraft, control.interrupted);
    if (ready) run_drafter(entry, count);
  } else {
    drafting->source.rest();
  }
  drafting->took = Clock::now() - begin;
}

void Engine::Impl::run_drafter(Entry& entry, std::int64_t count) {
  const auto begin = Clock::now();
  entry.draft.push_back(entry.tokens.back());
  const auto pick = [&](const float* row, std::int64_t index) {
    return pick_drafted(entry, row, index);
  };
  if (!drafting->source.draft(text_of(entry), count, control.interrupted, pick)) {
    entry.draft.clear();
    return;
  }
  drafting->made = true;
  drafting->observe(std::chrono::duration<double>(Clock::now() - begin).count(), count);
  spans.clear();
  span_owners.clear();
  add_span(entry, 1);
  step_rows.decode = spans.back().count;
}

// From a drafter's logits to a token of the draft, as the sequence's own would be sampled: where
// the two agree, so do the draws. Negative where the row is of no numbers.
std::int32_t Engine::Impl::pick_drafted(Entry& entry, const float* row, std::int64_t index) {
  const Choice choice{.blocked = entry.stop.blocked(entry.stats.completion_tokens + index)};
  const auto position = static_cast<std::uint64_t>(entry.size() + index);
  try {
    entry.draft.push_back(entry.sampler.pick(row, position, choice, scratch[0]));
  } catch (const BadLogits&) {
    return -1;
  }
  return entry.draft.back();
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
      if (!right || wants_trial(entry)) break;  // a trial begins with the row after, alone
    } catch (const BadLogits& bad) {
      error = bad.what();
    }
  }
  count_draft(entry, count - 1, std::max<std::int64_t>(kept - 1, 0));
  entry.kv->truncate(first + std::max<std::int64_t>(kept, 1));
  remember(entry);
  entry.kv->accept(entry.kv->length());
  if (drafting) drafting->source.keep(text_of(entry), entry.length());
  settle_thoughts(entry);
  if (!error.empty()) {
    finish(entry, FinishReason::error, ErrorKind::bad_logits, std::move(error));
  } else if (end) {
    end_sampled(entry, *end);
  }
}

void Engine::Impl::count_draft(Entry& entry, std::int64_t drafted, std::int64_t right) {
  entry.stats.drafted_tokens += drafted;
  entry.stats.accepted_tokens += right;
  if (drafting && drafting->made) {
    ++entry.stats.drafter_passes;
    entry.stats.drafter_accepted_tokens += right;
    drafting->length.tried(std::max<std::int64_t>(drafted, 1), right);
  } else {
    entry.drafting.tried(drafted, right);
  }
}

}  // namespace musespark

// Trials of the engine's sequences: decode/trial.h. Called with the mutex held, but for what
// choose() and try_row() look at: that is written by the step's thread alone.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/math64.h"
#include "decode/engine_impl.h"

namespace musespark {
namespace {

[[noreturn]] void fail(const std::string& field, const std::string& got,
                       const std::string& allowed) {
  throw InvalidRequest("trials." + field + ": got " + got + ", allowed is " + allowed);
}

}  // namespace

void check_trials(const TrialParams& params, const ThinkingParams& thinking, std::int64_t vocab) {
  if (params.tokens == 0) return;
  if (params.tokens < 0 || params.tokens > kMostTrialTokens) {
    fail("tokens", std::to_string(params.tokens), "0 to " + std::to_string(kMostTrialTokens));
  }
  if (!(params.confident >= 0 && params.confident <= 1)) {
    fail("confident", std::to_string(params.confident), "0 to 1");
  }
  if (params.stable < 1) fail("stable", std::to_string(params.stable), "an integer >= 1");
  if (params.every < 1) fail("every", std::to_string(params.every), "an integer >= 1");
  if (!thinking.watches()) fail("tokens", std::to_string(params.tokens), "0 without thinking");
  for (const std::int32_t id : params.close) {
    if (id >= 0 && id < vocab) continue;
    fail("close", std::to_string(id), "a token id from 0 to " + std::to_string(vocab - 1));
  }
  if (static_cast<std::int64_t>(params.close.size()) > kMostTrialTokens) {
    fail("close", std::to_string(params.close.size()) + " ids",
         "at most " + std::to_string(kMostTrialTokens));
  }
  check_stoppers(params.stoppers, thinking, "trials");
  if (params.close.empty() || params.close.front() != thinking.close) {
    fail("close", params.close.empty() ? "no id" : std::to_string(params.close.front()),
         "thinking.close, " + std::to_string(thinking.close) + ", first");
  }
}

// Bytes of a fork beyond what it shares: a window's pages, and those it writes.
std::int64_t Engine::Impl::trial_bytes(const RequestParams& params) const {
  if (!params.trials.on()) return 0;
  const std::int64_t own =
      static_cast<std::int64_t>(params.trials.close.size()) + params.trials.tokens;
  return prompt_kv_bytes(std::numeric_limits<std::int64_t>::max() / 4) +
         pool.bytes_for(own + 2 * kPageTokens, 1);
}

// Whether a trial begins at the sequence's end.
bool Engine::Impl::wants_trial(const Entry& entry) const {
  const TrialParams& params = entry.params.trials;
  const std::int64_t size = entry.size();
  if (!params.on() || size <= entry.stats.prompt_tokens) return false;
  if (!entry.thinking.at_sentence_end(entry.params.thinking, entry.thoughts, entry.tokens)) {
    return false;
  }
  const std::int64_t since = std::max(entry.tried_at, entry.thoughts.spans().back().begin);
  const std::int64_t most = size + static_cast<std::int64_t>(params.close.size()) + params.tokens;
  const bool same_rope = !entry.short_rope || most <= model.original_context();
  return size - since >= params.every && most <= options.context && same_rope;
}

// Of the row that follows the sequence's end, where a trial begins.
TrialRow Engine::Impl::trial_row(const Entry& entry, const float* row,
                                 SamplerScratch& memory) const {
  const ThinkingParams& thinking = entry.params.thinking;
  TrialRow out;
  out.marker = forced(entry, row, thinking.close, memory);
  const ThoughtStoppers& stoppers = entry.params.trials.stoppers;
  if (stoppers.any()) out.features = entry.thinking.features(thinking, row);
  if (stoppers.hopeless && !thinking.message.empty()) {
    out.word = forced(entry, row, thinking.message.front(), memory);
  }
  return out;
}

void Engine::Impl::begin_trial(Entry& entry) {
  const std::int64_t before = std::exchange(entry.tried_at, entry.size());
  std::vector<std::int32_t> tokens = entry.tokens;
  tokens.insert(tokens.end(), entry.params.trials.close.begin(), entry.params.trials.close.end());
  entry.trial.emplace(Trial{entry.size(), std::move(tokens), entry.kv->fork(), entry.thinking,
                            entry.trial_row, before});
}

// Whether a sampled token has to wait for the trial.
bool Engine::Impl::waits_for_trial(const Entry& entry, std::int32_t token) const {
  if (!entry.trial) return false;
  FinishReason reason;
  return entry.ends_thought(token) ||
         entry.stop.ends(token, entry.stats.completion_tokens + 1, &reason) ||
         entry.size() - entry.trial->at >= kTrialLead || wants_trial(entry);
}

// A token that follows all of the sequence's, which have keys and values.
void Engine::Impl::take_sampled(Entry& entry, SampledToken token, Clock::time_point now) {
  const bool closing = entry.ends_thought(token.token);  // itself: there is nothing to try
  if (!entry.trial && !closing && wants_trial(entry)) begin_trial(entry);
  if (waits_for_trial(entry, token.token)) {
    entry.held = std::move(token);
    return;
  }
  book_sampled(entry, std::move(token), now);
}

// A trial's next token.
void Engine::Impl::book_trial(Entry& entry, std::span<Job> done, Clock::time_point now) {
  if (!entry.trial) return;
  Trial& trial = *entry.trial;
  Job& job = done.front();
  if (!job.error.empty()) {
    finish(entry, FinishReason::error, job.kind, std::move(job.error));
    return;
  }
  const SampledToken& token = job.token;
  const std::int64_t rows = trial.kv.length() - trial.at;
  entry.stats.trial_tokens += rows - std::exchange(trial.rows, rows);
  FinishReason reason;
  const bool ends =
      entry.stop.ends(token.token, 0, &reason) || token.token == entry.params.thinking.close;
  trial.logprobs.push_back(token.logprob);
  if (job.own.token >= 0) trial.sampled.push_back(std::move(job.own));
  if (!ends) {
    trial.tokens.push_back(token.token);
    if (static_cast<std::int64_t>(trial.logprobs.size()) < entry.params.trials.tokens) return;
  }
  settle_trial(entry, now);
}

void Engine::Impl::settle_trial(Entry& entry, Clock::time_point now) {
  const TrialParams& params = entry.params.trials;
  Trial& trial = *entry.trial;
  TrialResult found;
  found.at = entry.thoughts.count(entry.stats.prompt_tokens, trial.at);
  const auto first =
      trial.tokens.begin() + trial.at + static_cast<std::ptrdiff_t>(params.close.size());
  found.answer.assign(first, trial.tokens.end());
  double sum = 0;
  for (const float logprob : trial.logprobs) sum += logprob;
  const double mean = sum / static_cast<double>(trial.logprobs.size());
  found.confidence = static_cast<float>(math64::exp(mean));
  found.rows = trial.rows;
  auto& results = entry.stats.trials;
  const bool same = !results.empty() && results.back().answer == found.answer;
  entry.agreed = same ? entry.agreed + 1 : 1;
  results.push_back(std::move(found));
  if (const ThoughtStop why = trial_stop(entry); why != ThoughtStop::none) {
    end_by_trial(entry, why, now);
    return;
  }
  entry.trial.reset();
  if (entry.held) take_sampled(entry, *std::exchange(entry.held, std::nullopt), now);
}

// What the trial that has just ended says of the thought.
ThoughtStop Engine::Impl::trial_stop(Entry& entry) const {
  const TrialParams& params = entry.params.trials;
  const float confidence = entry.stats.trials.back().confidence;
  const bool sure = confidence >= params.confident && entry.agreed >= params.stable;
  if (sure && !params.stoppers.confident) {
    return params.stable > 1 ? ThoughtStop::stable : ThoughtStop::confident;
  }
  if (!params.stoppers.any()) return ThoughtStop::none;
  Features& features = entry.trial->row.features;
  features.add_trial(confidence, entry.agreed);
  return params.stoppers.judge(features);
}

// Takes a sequence back to where its trial forked from.
void Engine::Impl::rewind_to_trial(Entry& entry) {
  const Trial& trial = *entry.trial;
  const std::int64_t back = entry.size() - trial.at;
  entry.held.reset();
  entry.tokens.resize(static_cast<std::size_t>(trial.at));
  entry.unreported.resize(entry.unreported.size() - static_cast<std::size_t>(back));
  entry.stats.completion_tokens -= back;
  entry.constrained = std::min(entry.constrained, entry.stats.completion_tokens);
  entry.thinking = trial.control;
  entry.thoughts = {};
  entry.thoughts.see(entry.params.thoughts, entry.tokens);
  entry.sampler.restart(std::span(entry.tokens), entry.stats.prompt_tokens);
}

// The sequence gives way to others: the trial begins again when it has been computed again.
void Engine::Impl::drop_trial(Entry& entry) {
  if (!entry.trial) return;
  rewind_to_trial(entry);
  entry.tried_at = entry.trial->tried_before;
  entry.stats.trial_tokens -= entry.trial->rows;
  entry.trial.reset();
}

// Where a thought has no more time it waits for no trial: one under way is given up, unanswered,
// and what was written meanwhile stays.
void Engine::Impl::give_up_late_trials(Clock::time_point now) {
  for (std::size_t i = running.size(); i-- > 0;) {  // one may end with the token it held
    Entry& entry = *running[i];
    if (!entry.trial || !is_late(entry)) continue;
    entry.trial.reset();
    if (entry.held) book_sampled(entry, *std::exchange(entry.held, std::nullopt), now);
  }
}

void Engine::Impl::end_by_trial(Entry& entry, ThoughtStop why, Clock::time_point now) {
  rewind_to_trial(entry);
  Trial trial = *std::exchange(entry.trial, std::nullopt);
  entry.kv = std::move(trial.kv);
  const ThinkingParams& thinking = entry.params.thinking;
  const std::int64_t used = entry.thoughts.count(entry.stats.prompt_tokens, entry.size());
  const bool words = why == ThoughtStop::hopeless && thinking.fits_message(used);
  std::vector<std::int32_t> tokens;
  if (words) tokens = thinking.message;
  tokens.insert(tokens.end(), entry.params.trials.close.begin(), entry.params.trials.close.end());
  entry.thinking.end_with({tokens.begin() + 1, tokens.end()}, why);
  if (!words && !trial.sampled.empty()) return go_on_with(entry, trial, now);
  entry.kv->truncate(entry.size());  // whole: the fork has accepted no more
  book_sampled(entry, std::move(words ? trial.row.word : trial.row.marker), now);
}

// Whether what a sequence samples is a function of the row and its place alone, and nothing but the
// token is wanted of it.
bool Engine::Impl::keeps_trials(const Entry& entry) {
  return !entry.params.constraint && !entry.demotes() && !entry.sampler.has_penalties() &&
         entry.sampler.params().logprobs == 0;
}

// A row of a trial: what it answers, and what its sequence would.
void Engine::Impl::try_row(Job& job, SamplerScratch& memory) const {
  const Entry& entry = *job.entry;
  job.token = entry.sampler.likeliest(job.row, memory);
  if (!keeps_trials(entry)) return;
  const Trial& trial = *entry.trial;
  if (!trial.sampled.empty() && trial.sampled.back().token != trial.tokens.back()) return;
  const auto place = static_cast<std::int64_t>(trial.tokens.size());
  const Choice choice{.blocked = entry.stop.blocked(place - entry.stats.prompt_tokens)};
  job.own = entry.sampler.sample(job.row, static_cast<std::uint64_t>(place), choice, memory);
}

// What follows the sequence's end, of a trial whose rows it has: a closing token, or what it
// samples there. None where that would have to be asked of a row: its thoughts' rules have a say.
std::optional<SampledToken> Engine::Impl::next_of_trial(Entry& entry, const Trial& trial) const {
  const auto closed = trial.at + static_cast<std::int64_t>(entry.params.trials.close.size());
  const std::int64_t answered = entry.size() - closed;
  if (entry.thoughts.open() || answered >= static_cast<std::int64_t>(trial.sampled.size())) {
    return std::nullopt;
  }
  if (answered >= 0 && is_late(entry)) return std::nullopt;
  const ThinkingControl::Rule rule =
      entry.thinking.next(entry.params.thinking, entry.thoughts, entry.tokens,
                          entry.stats.prompt_tokens, nullptr, false);
  if (answered >= 0) return trial.sampled[static_cast<std::size_t>(answered)];
  SampledToken closing;
  closing.token = rule.forced;
  return closing;
}

// The sequence, taken back to where the trial began and with the trial's rows, goes on as it would
// have without it.
void Engine::Impl::go_on_with(Entry& entry, const Trial& trial, Clock::time_point now) {
  std::optional<SampledToken> token = trial.row.marker;
  std::optional<FinishReason> end;
  while (token && !end) {
    const std::int64_t place = entry.size();
    const bool right = place < static_cast<std::int64_t>(trial.tokens.size()) &&
                       trial.tokens[static_cast<std::size_t>(place)] == token->token;
    end = append_sampled(entry, std::move(*token), now);
    token = right && !end ? next_of_trial(entry, trial) : std::nullopt;
  }
  entry.kv->truncate(entry.size() - 1);
  const std::int64_t kept = entry.length() - trial.at;
  entry.stats.trial_tokens -= kept;
  entry.stats.trials.back().rows -= kept;
  remember(entry);
  entry.kv->accept(entry.length());
  settle_thoughts(entry);
  if (end) end_sampled(entry, *end);
}

// The trial's rows of the next step, where there is room for them.
void Engine::Impl::choose_trial_rows() {
  for (Entry* entry : running) {
    // One that its sequence waits for has its rows whatever else runs.
    if (!entry->trial || (step_rows.decode >= options.prefill_chunk && !entry->held)) continue;
    Trial& trial = *entry->trial;
    spans.push_back({&trial.kv, trial.tokens.data() + trial.kv.length(), trial.pending(),
                     StepSpan::Logits::last, entry->short_rope, entry->adapter.get(), nullptr,
                     entry->params.given});
    span_owners.push_back({entry, entry->id, true});
    step_rows.decode += trial.pending();
  }
}

}  // namespace musespark

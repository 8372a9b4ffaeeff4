// One forward pass and what follows from it.
#include <algorithm>
#include <new>

#include "decode/engine_impl.h"

namespace musespark {
namespace {

// Values to look through from which rows are sampled on several threads.
constexpr std::int64_t kParallelValues = 1 << 15;
// Of the time until a request's deadline, what is kept for what follows its thoughts at most.
constexpr double kMostReserved = 0.5;

}  // namespace

// False when there was nothing to run.
bool Engine::Impl::step() {
  const auto begin = Clock::now();
  {
    const std::lock_guard lock(mutex);
    plan(begin);
    if (spans.empty()) {
      count_pages();
      return false;
    }
  }
  const std::int64_t redone = counters.redone_steps;
  execute(0, spans.size());
  if (redone == counters.redone_steps) {
    const auto drafted = drafting ? drafting->took : Clock::duration{};
    const double took = std::chrono::duration<double>(Clock::now() - begin - drafted).count();
    pace.observe(step_rows, took);
    if (spans.size() == 1 && step_rows.prefill == 0) row_cost.observe(step_rows.decode, took);
  }
  return true;
}

// Asked before every layer: whether a sequence of this step was cancelled or is past its deadline.
bool Engine::Impl::interrupted() const {
  std::optional<Clock::time_point> now;
  for (std::size_t i = batch_first; i < batch_first + batch_count; ++i) {
    const Entry* entry = span_owners[i].entry;
    if (entry->cancelled.load(std::memory_order_relaxed)) return true;
    if (entry->deadline) {
      if (!now) now = Clock::now();
      if (*now >= *entry->deadline) return true;
    }
  }
  return false;
}

// Runs spans [first, first + count) as one batch. Interrupted: nothing happened, and the next plan
// ends who is to be ended and runs the others' rows again.
void Engine::Impl::execute(std::size_t first, std::size_t count) {
  batch_first = first;
  batch_count = count;
  try {
    if (drafting) draft_if_wanted();
    const std::span<const StepSpan> batch(spans.data() + first, count);
    const std::int64_t rows = TextModel::logit_rows(batch);
    if (static_cast<std::int64_t>(logits.size()) < rows * vocab) {
      logits.resize(static_cast<std::size_t>(rows * vocab));
    }
    if (model.forward(batch, control, logits.data()) == StepOutcome::interrupted) {
      const std::lock_guard lock(mutex);
      ++counters.redone_steps;
      return;
    }
  } catch (const MemoryBudgetExceeded& error) {
    return fail_or_split(first, count, ErrorKind::memory, error.what());
  } catch (const std::bad_alloc& error) {
    return fail_or_split(first, count, ErrorKind::memory, error.what());
  } catch (const Error& error) {
    return fail_or_split(first, count, ErrorKind::other, error.what());
  }
  book(first, count);
}

// A failed batch changed nothing: run its sequences one by one, and end the one that fails alone.
void Engine::Impl::fail_or_split(std::size_t first, std::size_t count, ErrorKind kind,
                                 const char* what) {
  if (count == 1) {
    const std::lock_guard lock(mutex);
    const SpanOwner& owner = span_owners[first];
    if (entries.contains(owner.id) && owner.entry->phase == Phase::running) {
      finish(*owner.entry, FinishReason::error, kind, what);
    }
    return;
  }
  for (std::size_t i = first; i < first + count; ++i) {
    const SpanOwner& owner = span_owners[i];
    const auto gone = [&] {  // with a span before this one
      const std::lock_guard lock(mutex);
      return !entries.contains(owner.id) || owner.entry->phase != Phase::running ||
             (owner.trial && !owner.entry->trial);
    };
    if (!gone()) execute(i, 1);
  }
}

void Engine::Impl::book(std::size_t first, std::size_t count) {
  collect_jobs(first, count);
  constrain_jobs();
  run_jobs();
  const auto now = Clock::now();
  const std::lock_guard lock(mutex);
  ++counters.steps;
  const float* row = logits.data();
  std::size_t job = 0;
  for (std::size_t i = first; i < first + count; ++i) {
    const StepSpan& span = spans[i];
    const std::int64_t rows = TextModel::logit_rows({&span, 1});
    const std::size_t first_job = job;
    const SpanOwner& owner = span_owners[i];
    while (job < jobs.size() && jobs[job].entry == owner.entry && jobs[job].trial == owner.trial) {
      ++job;
    }
    counters.rows += span.count;
    const std::span<Job> done(jobs.data() + first_job, job - first_job);
    row += rows * vocab;
    if (!entries.contains(owner.id) || owner.entry->phase != Phase::running) continue;
    // What booking one sequence needs (memory for its logits) is not the others' affair.
    try {
      if (owner.trial) {
        book_trial(*owner.entry, done, now);
      } else {
        book_entry(*owner.entry, row - rows * vocab, rows, done, now);
      }
    } catch (const std::bad_alloc& error) {
      finish(*owner.entry, FinishReason::error, ErrorKind::memory, error.what());
    } catch (const MemoryBudgetExceeded& error) {
      finish(*owner.entry, FinishReason::error, ErrorKind::memory, error.what());
    } catch (const Error& error) {
      finish(*owner.entry, FinishReason::error, ErrorKind::other, error.what());
    }
  }
  count_pages();
}

void Engine::Impl::count_pages() {
  if (prefixes) prefixes->shrink(options.prefix_bytes);
  const PagePool::Usage usage = pool.usage();
  counters.kv_bytes_allocated = usage.allocated;
  counters.kv_bytes_used = usage.in_use - usage.kept;
  counters.prefix_bytes = usage.kept;
  counters.pages = usage.pages;
  counters.open_pages = usage.open_pages;
  if (drafting) counters.drafter_tokens = drafting->source.length();
}

// What one sequence got from the step: `rows` rows of logits and what was made of them.
void Engine::Impl::book_entry(Entry& entry, const float* values, std::int64_t rows,
                              std::span<Job> done, Clock::time_point now) {
  if (!entry.draft.empty()) return book_draft(entry, values, now);
  remember(entry);
  entry.kv->accept(entry.kv->length());
  if (drafting) drafting->source.keep(text_of(entry), entry.length());
  settle_thoughts(entry);
  if (keeps_prompt_end(entry.params) && entry.length() == entry.stats.prompt_tokens) {
    entry.prompt_kv = entry.kv->fork();
  }
  for (Job& job : done) {
    if (job.error.empty()) continue;
    finish(entry, FinishReason::error, job.kind, std::move(job.error));
    return;
  }
  if (entry.params.logits == LogitsMode::score) {
    book_scores(entry, rows, done);
  } else if (entry.looks()) {
    book_attention(entry);
  } else if (entry.gives_states()) {
    book_states(entry);
  } else if (!entry.samples()) {
    book_logits(entry, values, rows);
  } else if (rows == 1 && done.front().ends) {
    finish(entry, FinishReason::stop);
  } else if (rows == 1) {
    take_sampled(entry, std::move(done.front().token), now);
  } else if (entry.pending() == 0) {
    finish(entry, FinishReason::length);  // max_new_tokens = 0: the prompt alone
  }
}

bool Engine::Impl::keeps_prefixes(const Entry& entry) const {
  const auto& adapter = entry.params.adapter;
  return prefixes && (!adapter || adapters.contains(*adapter));  // not removed
}

// Puts the pages that the step filled into the prefix tree, before those outside windows go.
void Engine::Impl::remember(Entry& entry) {
  const std::int64_t before = entry.kv->accepted(), now = entry.length();
  const bool prompt_ends = before < entry.stats.prompt_tokens && now >= entry.stats.prompt_tokens;
  if (!keeps_prefixes(entry) || (now / kPageTokens == before / kPageTokens && !prompt_ends)) {
    return;
  }
  if (entry.ends_with_prompt() && before >= entry.stats.prompt_tokens) return;
  if (before < entry.stats.prompt_tokens && widest_window > 0) {  // a next prompt may end otherwise
    const std::int64_t from = std::max(before, entry.stats.prompt_tokens - kLastMessage);
    for (std::int64_t page = (from + kPageTokens - 1) / kPageTokens; page <= now / kPageTokens;
         ++page) {
      entry.mark(page * kPageTokens);
    }
  }
  std::span<const std::int32_t> tokens = entry.tokens;
  if (entry.ends_with_prompt()) {
    const std::int64_t most = std::min(entry.stats.prompt_tokens, common_tokens(entry));
    tokens = tokens.first(static_cast<std::size_t>(most));
  }
  prefixes->insert(entry.prefix_key(), tokens, *entry.kv, entry.marks);
  std::erase_if(entry.marks, [now](std::int64_t mark) { return mark <= now; });
}

// A next turn goes on from here.
void Engine::Impl::remember_end(Entry& entry) {
  const std::int64_t end = entry.length() / kPageTokens * kPageTokens;
  if (!keeps_prefixes(entry) || entry.ends_with_prompt() || end == 0) return;
  prefixes->insert(entry.prefix_key(), entry.tokens, *entry.kv, {&end, 1});
}

// The rows that are looked at here: one for each sequence that gets a token, and those to score.
void Engine::Impl::collect_jobs(std::size_t first, std::size_t count) {
  jobs.clear();
  const float* row = logits.data();
  for (std::size_t i = first; i < first + count; ++i) {
    Entry& entry = *span_owners[i].entry;
    const std::int64_t rows = TextModel::logit_rows({&spans[i], 1});
    if (span_owners[i].trial) {
      jobs.push_back({.entry = &entry, .row = row, .trial = true});
    } else if (entry.params.logits == LogitsMode::score) {
      const std::int64_t start = entry.length() - rows;
      for (std::int64_t j = 0; j < rows && start + j + 1 < entry.size(); ++j) {
        jobs.push_back({&entry, row + j * vocab, entry.tokens[start + j + 1]});
      }
    } else if (entry.samples() && rows == 1 && entry.draft.empty()) {
      jobs.push_back({&entry, row});
    }
    row += rows * vocab;
  }
}

// Asks the constraints, one after the other: what is behind them may serve one thread at a time.
void Engine::Impl::constrain_jobs() {
  const auto words = static_cast<std::size_t>((vocab + 63) / 64);
  const auto constrained = [](const Job& job) {
    return job.known < 0 && !job.trial && job.entry->params.constraint != nullptr;
  };
  bitmaps.assign(words * std::ranges::count_if(jobs, constrained), 0);
  std::span<std::uint64_t> rest(bitmaps);
  for (Job& job : jobs) {
    if (!constrained(job)) continue;
    Entry& entry = *job.entry;
    const std::span<std::uint64_t> ids = rest.first(words);
    rest = rest.subspan(words);
    const auto known = static_cast<std::size_t>(entry.stats.prompt_tokens + entry.constrained);
    try {
      const std::span<const std::int32_t> tokens(entry.tokens);
      const Allowed allowed = entry.params.constraint->next(tokens.subspan(known), ids);
      entry.constrained = entry.stats.completion_tokens;
      job.ends = allowed == Allowed::end;
      if (allowed == Allowed::some) job.allowed = ids;
    } catch (const std::bad_alloc& error) {
      job.kind = ErrorKind::memory;
      job.error = error.what();
    } catch (const std::exception& error) {
      job.kind = ErrorKind::constraint;
      job.error = error.what();
    }
  }
}

// Whether a sequence has no more time to think.
bool Engine::Impl::is_late(const Entry& entry) {
  const std::int64_t reserve = entry.deadline ? entry.params.thinking.reserve : 0;
  if (!entry.thinking_deadline && reserve == 0) return false;
  const auto now = Clock::now();
  if (entry.thinking_deadline && now >= *entry.thinking_deadline) return true;
  if (reserve == 0 || entry.stats.completion_tokens == 0) return false;
  const std::chrono::duration<double> written = now - entry.first_token;
  const std::chrono::duration<double> whole = *entry.deadline - entry.submitted;
  const auto wanted =
      static_cast<double>(reserve) * written / static_cast<double>(entry.stats.completion_tokens);
  return *entry.deadline - now <= std::min(wanted, kMostReserved * whole);
}

// The next token of a sequence: by the rule for its thoughts, where that says it, else sampled.
SampledToken Engine::Impl::choose(Entry& entry, const Job& job, SamplerScratch& memory) const {
  Choice choice{.allowed = job.allowed,
                .blocked = entry.stop.blocked(entry.stats.completion_tokens)};
  const ThinkingParams& thinking = entry.params.thinking;
  if (wants_trial(entry)) entry.trial_row = trial_row(entry, job.row, memory);
  ThinkingControl::Rule rule;
  if (thinking.watches()) {
    rule = entry.thinking.next(thinking, entry.thoughts, entry.tokens, entry.stats.prompt_tokens,
                               job.row, is_late(entry));
    if (rule.forced >= 0) return forced(entry, job.row, rule.forced, memory);
    if (rule.whole) choice.also = thinking.classes->whole;
    choice.barred = rule.barred;
    choice.raised = rule.raised;
    choice.by = rule.by;
  }
  const auto position = static_cast<std::uint64_t>(entry.size());
  return with_signals(entry, job.row, entry.sampler.sample(job.row, position, choice, memory),
                      memory);
}

SampledToken Engine::Impl::forced(const Entry& entry, const float* row, std::int32_t token,
                                  SamplerScratch& memory) const {
  return with_signals(entry, row, entry.sampler.forced(row, token, memory), memory);
}

// Adds the signals of a token that becomes a thought's, where they are wanted.
SampledToken Engine::Impl::with_signals(const Entry& entry, const float* row, SampledToken token,
                                        SamplerScratch& memory) const {
  const ThinkingParams& thinking = entry.params.thinking;
  if (!thinking.signals || !entry.thoughts.open() || entry.ends_thought(token.token)) return token;
  const std::span<const float> values(row, static_cast<std::size_t>(vocab));
  token.signals = token_signals(values, token.token, thinking.close, memory.scaled);
  return token;
}

// With the likeliest tokens beside it where they are asked for.
void Engine::Impl::score(Job& job, SamplerScratch& memory) const {
  if (job.entry->params.sampling.logprobs > 0) {
    job.token = job.entry->sampler.forced(job.row, job.known, memory);
  } else {
    job.token.logprob = token_logprob(job.row, vocab, job.known, memory);
  }
}

void Engine::Impl::run_jobs() {
  const auto run_job = [this](std::int64_t item, int worker) {
    Job& job = jobs[item];
    if (job.ends || !job.error.empty()) return;
    try {
      if (job.trial) {
        try_row(job, scratch[worker]);
      } else if (job.known >= 0) {
        score(job, scratch[worker]);
      } else {
        job.token = choose(*job.entry, job, scratch[worker]);
      }
    } catch (const BadLogits& error) {
      job.kind = ErrorKind::bad_logits;
      job.error = error.what();
    } catch (const std::bad_alloc& error) {
      job.kind = ErrorKind::memory;
      job.error = error.what();
    }
  };
  const auto items = static_cast<std::int64_t>(jobs.size());
  if (items > 1 && items * vocab >= kParallelValues) {
    threads.run(items, run_job);
  } else {
    for (std::int64_t i = 0; i < items; ++i) run_job(i, 0);
  }
}

void Engine::Impl::book_sampled(Entry& entry, SampledToken sampled, Clock::time_point now) {
  if (const auto end = append_sampled(entry, std::move(sampled), now)) end_sampled(entry, *end);
}

// Makes a token the sequence's next; why the sequence ends with it, if it does.
std::optional<FinishReason> Engine::Impl::append_sampled(Entry& entry, SampledToken sampled,
                                                         Clock::time_point now) {
  const std::int32_t token = sampled.token;
  if (entry.stats.completion_tokens == 0) {
    entry.first_token = now;
    entry.stats.first_token_s = std::chrono::duration<double>(now - entry.submitted).count();
    entry.stats.prefill_s = std::chrono::duration<double>(now - entry.admitted).count();
  }
  entry.tokens.push_back(token);
  entry.sampler.add_completion(token);
  entry.thoughts.see(entry.params.thoughts, entry.tokens);
  if (entry.params.thinking.watches()) {
    entry.thinking.took(entry.params.thinking, entry.thoughts, entry.tokens, sampled.signals);
    entry.stats.thought_stop = entry.thinking.stop();
  }
  entry.unreported.push_back(std::move(sampled));
  if (entry.stats.completion_tokens == 0) {  // for which somebody waits
    report_tokens(entry);
    return_early = true;
  }
  ++entry.stats.completion_tokens;
  FinishReason reason = FinishReason::length;
  const bool ends = entry.stop.ends(token, entry.stats.completion_tokens, &reason);
  if (!ends && entry.answer_left() > 0) return std::nullopt;
  return reason;
}

void Engine::Impl::end_sampled(Entry& entry, FinishReason reason) {
  if (widest_window > 0) remember_end(entry);
  finish(entry, reason);
}

// `count` rows of logits, up to the sequence's new end.
void Engine::Impl::book_logits(Entry& entry, const float* rows, std::int64_t count) {
  if (count > 0) {
    events->emplace_back(LogitsEvent{entry.id, entry.length() - count, count, vocab,
                                     std::vector<float>(rows, rows + count * vocab)});
    return_early = true;
  }
  if (entry.pending() == 0) finish(entry, FinishReason::length);
}

void Engine::Impl::book_attention(Entry& entry) {
  if (entry.pending() > 0) return;
  const auto& spans_wanted = entry.params.look_at;
  LogitsEvent event{entry.id, 0, 0, 0, {}};
  for (const KeySpan& span : spans_wanted) event.cols += span.count;
  {
    const Unlocked others(mutex);
    event.values = attention_weights(*entry.kv, entry.log, model.layer_scores(), spans_wanted,
                                     entry.looking_rows(), threads);
  }
  event.rows = static_cast<std::int64_t>(event.values.size()) / event.cols;
  event.first = event.rows / entry.looking_rows();
  events->emplace_back(std::move(event));
  return_early = true;
  finish(entry, FinishReason::length);
}

// The states that the step logged of the sequence, where it logged any.
void Engine::Impl::book_states(Entry& entry) {
  const auto layers = static_cast<std::int64_t>(entry.states.layers.size());
  LogitsEvent event{entry.id, 0, 0, layers * model.spec().hidden, {}};
  event.values.swap(entry.states.rows);
  event.rows = static_cast<std::int64_t>(event.values.size()) / event.cols;
  event.first = entry.length() - event.rows;
  if (event.rows > 0) {
    events->emplace_back(std::move(event));
    return_early = true;
  }
  if (entry.pending() == 0) finish(entry, FinishReason::length);
}

// Scores from `rows` rows; what follows the last prompt token is not known, so that row has none.
void Engine::Impl::book_scores(Entry& entry, std::int64_t rows, std::span<Job> scored) {
  if (!scored.empty() && entry.params.sampling.logprobs > 0) {
    TokensEvent event{entry.id, {}};
    for (Job& job : scored) event.tokens.push_back(std::move(job.token));
    events->emplace_back(std::move(event));
    return_early = true;
  } else if (!scored.empty()) {
    LogitsEvent event{entry.id, entry.length() - rows, std::ssize(scored), 1, {}};
    for (const Job& job : scored) event.values.push_back(job.token.logprob);
    events->emplace_back(std::move(event));
    return_early = true;
  }
  if (entry.pending() == 0) finish(entry, FinishReason::length);
}

}  // namespace musespark

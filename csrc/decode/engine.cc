#include "decode/engine.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/checked.h"
#include "base/float_env.h"
#include "decode/engine_impl.h"

namespace musespark {
namespace {

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

void check_positive(const char* field, std::int64_t value) {
  if (value < 1) {
    throw InvalidRequest(std::string(field) + ": got " + std::to_string(value) +
                         ", allowed is an integer >= 1");
  }
}

void check_request(const RequestParams& params, std::int64_t vocab) {
  check_sampling_params(params.sampling, vocab);
  check_thoughts(params.thoughts, vocab);
  check_thinking(params.thinking, params.thoughts, vocab);
  check_trials(params.trials, params.thinking, vocab);
  if (params.trials.on() && params.thoughts.most_tokens > 0) {
    throw InvalidRequest(
        "trials.tokens: got " + std::to_string(params.trials.tokens) +
        " with thoughts.most_tokens = " + std::to_string(params.thoughts.most_tokens) +
        "; a thought whose rows are evicted cannot be taken back");
  }
  if (params.max_answer_tokens && *params.max_answer_tokens < 1) {
    throw InvalidRequest("max_answer_tokens: got " + std::to_string(*params.max_answer_tokens) +
                         ", allowed is an integer >= 1");
  }
  for (const std::int32_t id : params.stop_ids) {
    if (id < 0 || id >= vocab) {
      throw InvalidRequest("stop_ids: got " + std::to_string(id) +
                           ", allowed is a token id from 0 to " + std::to_string(vocab - 1));
    }
  }
  if (params.min_new_tokens < 0) {
    throw InvalidRequest("min_new_tokens: got " + std::to_string(params.min_new_tokens) +
                         ", allowed is an integer >= 0");
  }
  if (params.max_new_tokens) {
    if (*params.max_new_tokens < 0) {
      throw InvalidRequest("max_new_tokens: got " + std::to_string(*params.max_new_tokens) +
                           ", allowed is an integer >= 0");
    }
    if (params.min_new_tokens > *params.max_new_tokens) {
      throw InvalidRequest(
          "min_new_tokens: got " + std::to_string(params.min_new_tokens) +
          ", more than max_new_tokens = " + std::to_string(*params.max_new_tokens));
    }
    if (params.logits != LogitsMode::none) {
      throw InvalidRequest("max_new_tokens: got " + std::to_string(*params.max_new_tokens) +
                           " with logits, which sample nothing; leave it out");
    }
  }
  if (params.constraint && params.logits != LogitsMode::none) {
    throw InvalidRequest("constraint: given with logits, which sample nothing; leave it out");
  }
  if (params.draft_tokens < 0 || params.draft_tokens > kMostDraft) {
    throw InvalidRequest("draft_tokens: got " + std::to_string(params.draft_tokens) +
                         ", allowed is 0 to " + std::to_string(kMostDraft));
  }
  if (params.deadline_s && !(*params.deadline_s >= 0 && *params.deadline_s < 1e9)) {
    throw InvalidRequest("deadline_s: got " + std::to_string(*params.deadline_s) +
                         ", allowed is 0 to 1e9 seconds from now");
  }
}

// After check_given.
void check_logits(const RequestParams& params, std::int64_t prompt, std::optional<RequestId> base) {
  const bool each = params.logits == LogitsMode::all || params.logits == LogitsMode::score ||
                    params.logits == LogitsMode::states;
  const auto refuse = [&](const std::string& why) {
    throw InvalidRequest("logits_from: got " + std::to_string(params.logits_from) + ", " + why);
  };
  if (!each) {
    if (params.logits_from != 0) refuse("allowed is 0 without logits for each token");
    return;
  }
  if (params.logits_from < 0 || params.logits_from >= prompt) {
    refuse("allowed is 0 to " + std::to_string(prompt - 1) + ", the last token");
  }
  if (!params.given.empty() && params.given.back().end() > params.logits_from) {
    refuse("but rows are given up to " + std::to_string(params.given.back().end()) +
           ", which have no next token");
  }
  if (base && params.logits_from == 0) {
    refuse("with a base (" + std::to_string(*base) +
           "), which has no logits for what is shared; allowed is more");
  }
}

// The layers whose states LogitsMode::states gives.
std::vector<std::int64_t> all_but_last(const ModelSpec& spec) {
  std::vector<std::int64_t> layers(spec.layers.size() - 1);
  if (layers.empty()) {
    throw InvalidRequest("logits: states are those of all layers but the last; the model has one");
  }
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

void check_looks(const RequestParams& params, const ModelSpec& spec, std::int64_t prompt) {
  const bool looks = params.logits == LogitsMode::attention;
  if (looks == params.look_at.empty()) {
    throw InvalidRequest("look_at: got " + std::to_string(params.look_at.size()) +
                         " spans, allowed is one or more with attention for logits, else none");
  }
  if (!looks) return;
  if (params.thoughts.most_tokens > 0) {
    throw InvalidRequest(
        "look_at: thoughts.most_tokens = " + std::to_string(params.thoughts.most_tokens) +
        " leaves out rows that are looked at");
  }
  const bool any = std::any_of(spec.layers.begin(), spec.layers.end(),
                               [](const LayerSpec& layer) { return layer.attention.window == 0; });
  if (!any) throw InvalidRequest("look_at: every layer of this model has a window");
  for (std::size_t i = 0; i < params.look_at.size(); ++i) {
    const auto [first, count] = params.look_at[i];
    const std::string where = "look_at[" + std::to_string(i) + "]";
    if (first < 0 || first >= prompt) {
      throw InvalidRequest(where + ".first: got " + std::to_string(first) + ", the prompt has " +
                           std::to_string(prompt) + " tokens");
    }
    if (count < 1 || count > prompt - first) {
      throw InvalidRequest(where + ".count: got " + std::to_string(count) + ", allowed is 1 to " +
                           std::to_string(prompt - first));
    }
  }
  if (params.look_at.size() > static_cast<std::size_t>(prompt)) {
    throw InvalidRequest("look_at: got " + std::to_string(params.look_at.size()) +
                         " spans, the prompt has " + std::to_string(prompt) + " tokens");
  }
}

// Tokens are negative where rows are given, and nowhere else.
void check_given_tokens(const std::vector<std::int32_t>& tokens,
                        const std::vector<GivenRows>& given) {
  std::size_t next = 0;
  for (std::size_t i = 0; i < tokens.size() && !given.empty(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    while (next < given.size() && given[next].end() <= at) ++next;
    const bool row = next < given.size() && given[next].first <= at;
    if (row == (tokens[i] < 0)) continue;
    throw InvalidRequest("tokens[" + std::to_string(i) + "]: got " + std::to_string(tokens[i]) +
                         (row ? ", allowed is a negative id: the row is given"
                              : ", allowed is a token id: no row is given"));
  }
}

}  // namespace

void check_tokens(const std::vector<std::int32_t>& tokens, std::int64_t vocab, bool given) {
  if (tokens.empty()) throw InvalidRequest("tokens: got none, allowed is at least one token id");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if ((tokens[i] < 0 && !given) || tokens[i] >= vocab) {
      throw InvalidRequest("tokens[" + std::to_string(i) + "]: got " + std::to_string(tokens[i]) +
                           ", allowed is a token id from 0 to " + std::to_string(vocab - 1));
    }
  }
}

Engine::Impl::Impl(TextModel& model_in, PagePool& pool_in, ThreadPool& threads_in,
                   EngineOptions options_in, DraftSource* drafter)
    : model(model_in),
      pool(pool_in),
      threads(threads_in),
      options(options_in),
      vocab(model_in.spec().vocab),
      budget(pool_in.usage().budget),
      pace(key_weight(model_in.spec())),
      scratch(static_cast<std::size_t>(threads_in.threads())) {
  check_positive("context", options.context);
  check_positive("prefill_chunk", options.prefill_chunk);
  check_positive("max_batch", options.max_batch);
  if (options.context > model.spec().max_context) {
    throw InvalidRequest("context: got " + std::to_string(options.context) +
                         ", allowed is at most the model's " +
                         std::to_string(model.spec().max_context));
  }
  for (int i = 0; i < pool.classes(); ++i) widest_window = std::max(widest_window, pool.window(i));
  if (options.prefix_cache) prefixes.emplace(pool);
  if (drafter) drafting.emplace(*drafter);
  control.interrupted = [this] { return interrupted(); };
}

// Completion tokens the request may have; throws where prompt and completion do not fit.
std::int64_t Engine::Impl::completion_limit(std::int64_t prompt,
                                            const RequestParams& params) const {
  const bool samples = params.logits == LogitsMode::none;
  // Without a given length there must be room for one token at least.
  const std::int64_t wanted = params.max_new_tokens.value_or(samples ? 1 : 0);
  const std::int64_t limit = options.context;
  if (prompt > limit || wanted > limit - prompt) {
    std::int64_t needed = 0;
    if (!try_add(prompt, wanted, &needed)) needed = std::numeric_limits<std::int64_t>::max();
    throw ContextOverflow("the request needs " + std::to_string(needed) + " tokens (prompt " +
                              std::to_string(prompt) + ", completion " + std::to_string(wanted) +
                              "), the context has " + std::to_string(limit),
                          needed, limit);
  }
  const std::int64_t completion =
      samples ? params.max_new_tokens.value_or(limit - prompt) : std::int64_t{0};
  if (params.min_new_tokens > completion) {
    throw ContextOverflow("min_new_tokens: got " + std::to_string(params.min_new_tokens) +
                              ", the context leaves " + std::to_string(completion),
                          prompt + params.min_new_tokens, limit);
  }
  return completion;
}

RequestId Engine::Impl::submit(std::vector<std::int32_t> tokens, RequestParams params,
                               std::optional<RequestId> base) {
  check_tokens(tokens, vocab, !params.given.empty());
  check_request(params, vocab);
  const auto prompt = static_cast<std::int64_t>(tokens.size());
  check_given(params.given, model.spec(), prompt);
  check_given_tokens(tokens, params.given);
  check_logits(params, prompt, base);
  check_looks(params, model.spec(), prompt);
  const std::int64_t limit = completion_limit(prompt, params);
  const std::int64_t total = prompt + params.max_new_tokens.value_or(0);
  const std::int64_t bytes =
      pool.bytes_for(total, rows_at_once(total, params.given)) + bytes_beside(prompt, params);
  if (bytes > budget) {
    throw MemoryBudgetExceeded("the request needs " + std::to_string(bytes) +
                               " bytes of keys and values for " + std::to_string(total) +
                               " tokens, the memory budget is " + std::to_string(budget));
  }
  const auto now = Clock::now();
  auto entry = std::make_unique<Entry>(std::move(tokens), std::move(params), vocab, limit);
  entry->submitted = now;
  const auto later = [now](double seconds) {
    return now +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  };
  if (const auto& after = entry->params.deadline_s) entry->deadline = later(*after);
  if (const auto& after = entry->params.thinking.deadline_s) {
    entry->thinking_deadline = later(*after);
  }
  if (entry->gives_states()) entry->states.layers = all_but_last(model.spec());
  const std::lock_guard lock(mutex);
  if (entry->params.adapter) entry->adapter = adapter_of(*entry->params.adapter, "adapter");
  if (base) {
    entry->source = &retained(*base, "base");
    ++entry->source->pins;
  }
  const RequestId id = next_id++;
  entry->id = id;
  stalled = false;
  waiting.emplace(id, entry.get());
  entries.emplace(id, std::move(entry));
  return id;
}

AdapterId Engine::Impl::add_adapter(const std::map<std::string, TensorView>& tensors,
                                    std::optional<AdapterId> over) {
  std::shared_ptr<const Adapter> base;
  if (over) {
    const std::lock_guard lock(mutex);
    base = adapter_of(*over, "over");
  }
  auto adapter = std::make_shared<const Adapter>(model.spec(), tensors, std::move(base));
  const std::lock_guard lock(mutex);
  adapters.emplace(next_adapter, std::move(adapter));
  return next_adapter++;
}

const std::shared_ptr<const Adapter>& Engine::Impl::adapter_of(AdapterId id,
                                                               const char* field) const {
  const auto found = adapters.find(id);
  if (found == adapters.end()) {
    throw InvalidRequest(std::string(field) + ": got " + std::to_string(id) +
                         ", allowed is an adapter that was added and not removed");
  }
  return found->second;
}

void Engine::Impl::remove_adapter(AdapterId id) {
  std::shared_ptr<const Adapter> last;  // freed after the lock
  const std::lock_guard lock(mutex);
  last = adapter_of(id, "id");
  adapters.erase(id);
  removed_adapters.push_back(id);
}

void Engine::Impl::check_given_out(RequestId id) const {
  if (id < 0 || id >= next_id) {
    throw InvalidRequest("id: got " + std::to_string(id) +
                         ", allowed is an id that submit or fork gave");
  }
}

Entry& Engine::Impl::retained(RequestId id, const char* field) {
  const auto found = kept.find(id);
  if (found == kept.end() || found->second->released) {
    throw InvalidRequest(
        std::string(field) + ": got " + std::to_string(id) +
        ", allowed is a sequence that was retained, has ended and is not released");
  }
  return *found->second;
}

RequestId Engine::Impl::fork(RequestId id) {
  const std::lock_guard lock(mutex);
  Entry& from = retained(id, "id");
  auto entry = std::make_unique<Entry>(from.tokens, from.params, vocab, from.stop.limit());
  Entry* twin = entry.get();
  twin->id = next_id++;
  twin->phase = Phase::retained;
  twin->stats = from.stats;
  twin->adapter = from.adapter;
  twin->source = &from;
  ++from.pins;
  entries.emplace(twin->id, std::move(entry));
  kept.emplace(twin->id, twin);
  unsettled.push_back(twin);
  return twin->id;
}

void Engine::Impl::release(RequestId id) {
  const std::lock_guard lock(mutex);
  const auto found = entries.find(id);
  if (found == entries.end() || found->second->released || !found->second->params.retain) {
    throw InvalidRequest("id: got " + std::to_string(id) +
                         ", allowed is a sequence submitted with retain and not yet released");
  }
  Entry& entry = *found->second;
  entry.released = true;
  if (entry.phase == Phase::retained) unsettled.push_back(&entry);
}

void Engine::Impl::cancel(RequestId id) {
  const std::lock_guard lock(mutex);
  check_given_out(id);
  stalled = false;
  const auto found = entries.find(id);
  if (found != entries.end()) found->second->cancelled.store(true, std::memory_order_relaxed);
}

void Engine::Impl::report_tokens(Entry& entry) {
  // What a trial may take back is nobody's yet.
  const std::int64_t open = entry.trial ? entry.size() - entry.trial->at : 0;
  const auto ready = static_cast<std::ptrdiff_t>(entry.unreported.size()) - open;
  if (ready <= 0) return;
  const auto first = entry.unreported.begin();
  TokensEvent event{entry.id, {}};
  event.tokens.assign(std::move_iterator(first), std::move_iterator(first + ready));
  entry.unreported.erase(first, first + ready);
  events->emplace_back(std::move(event));
}

// Ends a waiting or running sequence, with `mutex` held. The entry is gone afterwards unless it is
// to be retained.
void Engine::Impl::finish(Entry& entry, FinishReason reason, ErrorKind kind, std::string error) {
  entry.trial.reset();
  entry.held.reset();
  report_tokens(entry);
  const auto now = Clock::now();
  RequestStats& stats = entry.stats;
  const bool started = entry.admitted != Clock::time_point{};
  const bool produced = entry.first_token != Clock::time_point{};
  if (!started) stats.queue_s = seconds(now - entry.submitted);
  if (produced) {
    stats.decode_s = seconds(now - entry.first_token);
  } else if (started) {
    stats.prefill_s = seconds(now - entry.admitted);
  }
  count_thoughts(entry);
  events->emplace_back(FinishedEvent{entry.id, reason, kind, std::move(error), stats});
  return_early = true;

  if (entry.params.constraint) ended_constraints.push_back(std::move(entry.params.constraint));
  unpin_source(entry);
  if (entry.phase == Phase::waiting) waiting.erase(entry.id);
  if (entry.phase == Phase::running) std::erase(running, &entry);
  entry.shared.reset();
  if (entry.params.retain && !entry.released) {
    entry.params.given.clear();
    // Where rows were evicted nothing goes on from.
    if (entry.kv && entry.kv->evicted() > 0)
      entry.kv = std::exchange(entry.prompt_kv, std::nullopt);
    entry.phase = Phase::retained;
    entry.last_used = counters.steps;
    std::int64_t bytes = entry.length() == 0 ? 0 : pool.bytes_for(entry.length(), 1);
    if (entry.prompt_kv) bytes += prompt_kv_bytes(entry.prompt_kv->length());
    set_reserved(entry, 0, bytes);
    kept.emplace(entry.id, &entry);
    retained_bytes += entry.reserved_bytes;
    return;
  }
  set_reserved(entry, 0, 0);
  entries.erase(entry.id);
}

void Engine::Impl::run_until(double max_seconds, std::vector<Event>& out) {
  if (!(max_seconds >= 0 && max_seconds < 1e9)) {
    throw InvalidRequest("max_seconds: got " + std::to_string(max_seconds) +
                         ", allowed is 0 to 1e9");
  }
  const std::unique_lock running_here(run_mutex, std::try_to_lock);
  if (!running_here.owns_lock()) throw Error("run_until is already running in another thread");
  if (fault) std::rethrow_exception(fault);
  const FloatEnv environment;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(max_seconds));
  tell_by = tell_by == Clock::time_point{} ? end : std::min(tell_by, end);
  events = &out;
  return_early = false;
  try {
    bool going = false;
    do {
      going = step();
    } while (going && !return_early && Clock::now() < tell_by);
    if (!going || Clock::now() >= tell_by) {
      const std::lock_guard lock(mutex);
      for (Entry* entry : running) report_tokens(*entry);
      for (const auto& [id, entry] : waiting) report_tokens(*entry);  // preempted
      tell_by = {};
    }
    ended_constraints.clear();
  } catch (...) {
    fault = std::current_exception();
    throw;
  }
}

Engine::Engine(TextModel& model, PagePool& pool, ThreadPool& threads, EngineOptions options,
               DraftSource* drafter)
    : impl_(std::make_unique<Impl>(model, pool, threads, options, drafter)) {}
Engine::~Engine() = default;

RequestId Engine::submit(std::vector<std::int32_t> tokens, RequestParams params,
                         std::optional<RequestId> base) {
  return impl_->submit(std::move(tokens), std::move(params), base);
}
AdapterId Engine::add_adapter(const std::map<std::string, TensorView>& tensors,
                              std::optional<AdapterId> over) {
  return impl_->add_adapter(tensors, over);
}
void Engine::remove_adapter(AdapterId id) { impl_->remove_adapter(id); }
void Engine::cancel(RequestId id) { impl_->cancel(id); }
void Engine::provide_rows(RequestId id, std::int64_t index, std::int64_t count, SharedFloats rows,
                          std::vector<SharedFloats> taps) {
  impl_->provide_rows(id, index, count, std::move(rows), std::move(taps));
}
void Engine::cancel_all() {
  const std::lock_guard lock(impl_->mutex);
  impl_->stalled = false;
  for (auto& [id, entry] : impl_->entries) entry->cancelled.store(true, std::memory_order_relaxed);
}
RequestId Engine::fork(RequestId id) { return impl_->fork(id); }
void Engine::release(RequestId id) { impl_->release(id); }
void Engine::run_until(double max_seconds, std::vector<Event>& events) {
  impl_->run_until(max_seconds, events);
}
bool Engine::has_work() const {
  const std::lock_guard lock(impl_->mutex);
  return !impl_->waiting.empty() || !impl_->running.empty() || !impl_->unsettled.empty();
}
bool Engine::waits_for_rows() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stalled && impl_->unsettled.empty();
}
EngineStats Engine::stats() const {
  const std::lock_guard lock(impl_->mutex);
  EngineStats stats = impl_->counters;
  stats.waiting = static_cast<std::int64_t>(impl_->waiting.size());
  stats.running = static_cast<std::int64_t>(impl_->running.size());
  stats.retained = static_cast<std::int64_t>(impl_->kept.size());
  stats.kv_bytes_limit = impl_->budget;
  stats.adapters = static_cast<std::int64_t>(impl_->adapters.size());
  for (const auto& [id, adapter] : impl_->adapters) stats.adapter_bytes += adapter->bytes();
  return stats;
}

}  // namespace musespark

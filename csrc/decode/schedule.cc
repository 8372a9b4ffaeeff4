// Who may run, and in whose memory. Everything here is called with the mutex held.
#include <algorithm>
#include <limits>
#include <utility>

#include "decode/engine_impl.h"

namespace musespark {
namespace {

// Tokens a sequence of unknown length reserves ahead.
constexpr std::int64_t kGrowth = 256;

// Whether `a` holds every page of `b` in the class without a window, if there is one.
bool begins_with_pages_of(const Sequence& a, const Sequence& b) {
  if (b.pool().window(0) > 0) return true;
  for (std::int64_t p = 0; p * kPageTokens < b.length(); ++p) {
    if (a.page(0, p) != b.page(0, p)) return false;
  }
  return true;
}

}  // namespace

void Engine::Impl::plan(Clock::time_point now) {
  settle_requests();
  end_cancelled(now);
  give_up_late_trials(now);
  requeue_outgrown();
  grow_reservations();
  admit(now);
  choose_rows();
}

void Engine::Impl::set_reserved(Entry& entry, std::int64_t tokens, std::int64_t bytes) {
  reserved_bytes += bytes - entry.reserved_bytes;
  entry.reserved_tokens = tokens;
  entry.reserved_bytes = bytes;
}

void Engine::Impl::unpin_source(Entry& entry) {
  if (entry.source == nullptr) return;
  Entry& source = *entry.source;
  entry.source = nullptr;
  if (--source.pins == 0 && source.released) unsettled.push_back(&source);
}

// Makes the forks and carries out the releases that were asked for since the last step. A fork may
// be another's source, and was asked for after it; unpinning may append releases while this runs.
void Engine::Impl::settle_requests() {
  for (const AdapterId id : std::exchange(removed_adapters, {})) {
    for (Entry* entry : running) {
      if (entry->params.adapter != id) continue;
      // What the tree held for it is its own from now on.
      set_reserved(*entry, entry->reserved_tokens, entry->reserved_bytes + entry->shared.bytes());
      entry->shared.reset();
    }
    if (prefixes) prefixes->drop_adapter(id);
  }
  for (std::size_t i = 0; i < unsettled.size(); ++i) {
    if (unsettled[i] == nullptr) continue;
    Entry& entry = *unsettled[i];
    if (entry.source != nullptr) {
      if (entry.source->kv) {
        entry.kv = entry.source->kv->fork();
        entry.short_rope = entry.source->short_rope;
        if (entry.source->prompt_kv) entry.prompt_kv = entry.source->prompt_kv->fork();
        set_reserved(entry, 0, entry.source->reserved_bytes);
        retained_bytes += entry.reserved_bytes;
      }
      entry.last_used = counters.steps;
      unpin_source(entry);
    }
    if (entry.transfer && !entry.transfer->settled) settle_transfer(entry);
    if (entry.released && entry.pins == 0) {
      retained_bytes -= entry.reserved_bytes;
      set_reserved(entry, 0, 0);
      kept.erase(entry.id);
      std::replace(unsettled.begin(), unsettled.end(), &entry, static_cast<Entry*>(nullptr));
      entries.erase(entry.id);
    }
  }
  unsettled.clear();
}

void Engine::Impl::end_cancelled(Clock::time_point now) {
  const auto due = [now](const Entry& entry) {
    return entry.cancelled.load(std::memory_order_relaxed) ||
           (entry.deadline && now >= *entry.deadline);
  };
  std::vector<Entry*> ending;
  for (Entry* entry : running) {
    if (due(*entry)) ending.push_back(entry);
  }
  for (const auto& [id, entry] : waiting) {
    if (due(*entry)) ending.push_back(entry);
  }
  for (Entry* entry : ending) {
    finish(*entry, entry->cancelled.load(std::memory_order_relaxed) ? FinishReason::cancelled
                                                                    : FinishReason::deadline);
  }
}

// The pages that running sequences end in, and one that is about to run; -1 where there is none.
// The next step copies those that are not theirs alone.
std::unordered_set<PageId> Engine::Impl::pages_written_next() const {
  std::unordered_set<PageId> pages;
  const auto add = [&](const Entry& entry) {
    if (!entry.kv) return;
    for (int c = 0; c < pool.classes(); ++c) {
      pages.insert(entry.kv->page(c, entry.kv->slots(c) / kPageTokens));
    }
  };
  for (const Entry* entry : running) add(*entry);
  for (const auto& [id, entry] : waiting) add(*entry);
  return pages;
}

// Bytes of the pages that retained sequences hold, each page once: forks share. Not of those that a
// running sequence holds as well, to its end: neither copies nor leaves outside its window.
std::int64_t Engine::Impl::retained_page_bytes() const {
  std::unordered_map<PageId, int> holders;
  std::unordered_set<PageId> left = pages_written_next();
  const auto count = [&](const std::optional<Sequence>& sequence) {
    if (!sequence) return;
    for (int c = 0; c < pool.classes(); ++c) {
      for (std::int64_t p = 0; p * kPageTokens < sequence->length(); ++p) {
        const PageId page = sequence->page(c, p);
        if (page < 0) continue;
        ++holders[page];
        if (pool.window(c) > 0) left.insert(page);
      }
    }
  };
  for (const auto& [id, entry] : kept) {
    count(entry->kv);
    count(entry->prompt_kv);
  }
  std::int64_t bytes = 0;
  for (const auto& [page, held] : holders) {
    const bool alone = pool.references(page) == held + (pool.kept(page) ? 1 : 0);
    if (alone || left.contains(page)) bytes += pool.bytes(page);
  }
  return bytes;
}

// Room for `bytes` more, taken from retained sequences, least recently used first, where needed.
// They keep their tokens and lose their pages: a later request on them computes its prefix again.
bool Engine::Impl::make_room(std::int64_t bytes) {
  const std::int64_t pinned = prefixes ? prefixes->pinned_bytes() : 0;
  const std::int64_t others = reserved_bytes - retained_bytes + pinned + bytes;
  if (others > budget) return false;
  while (others + retained_bytes > budget && others + retained_page_bytes() > budget) {
    Entry* oldest = nullptr;
    for (const auto& [id, entry] : kept) {
      if (entry->kv && (oldest == nullptr || entry->last_used < oldest->last_used)) oldest = entry;
    }
    if (oldest == nullptr) return false;
    retained_bytes -= oldest->reserved_bytes;
    set_reserved(*oldest, 0, 0);
    const std::unique_lock nobody_copies(pages_mutex);
    oldest->drop_pages();
  }
  return true;
}

bool Engine::Impl::keeps_prompt_end(const RequestParams& params) const {
  const ThoughtParams& thoughts = params.thoughts;
  const bool needed =
      widest_window > 0 || thoughts.cache != ThoughtCache::keep || thoughts.most_tokens > 0;
  return params.retain && needed && params.logits == LogitsMode::none;
}

// What the sequence at the prompt's end holds beyond what it shares: a window's pages and, in each
// class, the page it ends in.
std::int64_t Engine::Impl::prompt_kv_bytes(std::int64_t prompt) const {
  return pool.bytes_for(std::min(prompt, widest_window + 2 * kPageTokens), 1);
}

// What a request may hold beyond its own sequence: the prompt's end, and pages that are made anew
// before the old ones go. A completion no longer than what a thought may keep has none evicted.
std::int64_t Engine::Impl::bytes_beside(std::int64_t prompt, const RequestParams& params) const {
  const ThoughtParams& thoughts = params.thoughts;
  std::int64_t bytes = keeps_prompt_end(params) ? prompt_kv_bytes(prompt) : 0;
  bytes += trial_bytes(params);
  if (pool.window(0) > 0) return bytes;
  const bool demotes = thoughts.cache == ThoughtCache::demote;
  const std::int64_t completion = params.max_new_tokens.value_or(options.context - prompt);
  const std::int64_t most = thoughts.most_tokens <= completion ? thoughts.most_tokens : 0;
  if (demotes || most > 0) bytes += pool.open_bytes(0);
  if (demotes) bytes += pool.full_bytes(0, KvForm::demoted);
  const std::int64_t pages = (rows_left(most) + kPageTokens - 1) / kPageTokens;
  return bytes + pages * pool.full_bytes(0, KvForm::body);
}

// Not what the sequence shares with the prefix tree: that is counted there. A sequence that is
// computed again has, until its last eviction, up to `most_tokens` rows more than it had.
std::int64_t Engine::Impl::bytes_for(const Entry& entry, std::int64_t tokens) const {
  const std::int64_t evicted = std::max(entry.most_evicted, entry.stats.evicted_tokens);
  const std::int64_t gone = std::max<std::int64_t>(0, evicted - entry.params.thoughts.most_tokens);
  return pool.bytes_for(tokens, rows_at_once(tokens, entry.params.given), gone) -
         entry.shared.bytes() + bytes_beside(entry.stats.prompt_tokens, entry.params);
}

bool Engine::Impl::fits(const Entry& entry, std::int64_t tokens) const {
  const std::int64_t pinned = prefixes ? prefixes->pinned_bytes() : 0;
  return reserved_bytes - retained_bytes + pinned + bytes_for(entry, tokens) <= budget;
}

// Reserves memory for `tokens` tokens of the entry in place of what it has.
bool Engine::Impl::reserve(Entry& entry, std::int64_t tokens) {
  const std::int64_t bytes = bytes_for(entry, tokens);
  if (!make_room(bytes - entry.reserved_bytes)) return false;
  set_reserved(entry, tokens, bytes);
  return true;
}

// Sequences of unknown length that have used up what they reserved get more; when there is none the
// youngest sequence gives up its pages and is computed again later.
void Engine::Impl::grow_reservations() {
  for (std::size_t i = 0; i < running.size(); ++i) {
    Entry& entry = *running[i];
    if (entry.size() <= entry.reserved_tokens) continue;
    while (true) {
      if (reserve(entry, std::min(options.context, entry.size() + kGrowth)) ||
          reserve(entry, entry.size())) {
        break;
      }
      Entry& youngest = *running.back();
      if (&youngest == &entry && running.size() == 1) {
        finish(entry, FinishReason::error, ErrorKind::memory,
               "the memory budget of " + std::to_string(budget) +
                   " bytes of keys and values is full after " + std::to_string(entry.size()) +
                   " tokens");
        break;
      }
      preempt(youngest);
      if (&youngest == &entry) break;
    }
  }
}

void Engine::Impl::preempt(Entry& entry) {
  requeue(entry);
  ++entry.stats.preemptions;
  ++counters.preemptions;
}

// Back among those that wait, by its age, without its pages.
void Engine::Impl::requeue(Entry& entry) {
  drop_trial(entry);
  entry.drop_pages();
  set_reserved(entry, 0, 0);
  std::erase(running, &entry);
  entry.phase = Phase::waiting;
  waiting.emplace(entry.id, &entry);
  entry.stats.cached_tokens = 0;
}

// Sequences that have outgrown the ropes' short factors are computed again with the long ones, in
// memory of their own: what they shared was made with the short ones.
void Engine::Impl::requeue_outgrown() {
  for (std::size_t i = running.size(); i-- > 0;) {
    Entry& entry = *running[i];
    if (entry.short_rope != wants_short_rope(entry)) requeue(entry);
  }
}

void Engine::Impl::admit(Clock::time_point now) {
  std::size_t following = 0;  // whose places nobody younger takes
  const auto most = static_cast<std::size_t>(options.max_batch);
  for (auto next = waiting.begin(); next != waiting.end() && running.size() + following < most;) {
    Entry& entry = *next->second;
    ++next;
    if (follows_running(entry)) {
      ++following;
      continue;
    }
    if (start(entry, now)) continue;
    if (!running.empty()) return;  // its turn comes when one of these ends
    finish(entry, FinishReason::error, ErrorKind::memory,
           "the memory budget of " + std::to_string(budget) +
               " bytes of keys and values cannot hold " + std::to_string(entry.size()) + " tokens");
  }
}

bool Engine::Impl::start(Entry& entry, Clock::time_point now) {
  const std::int64_t known = entry.stats.prompt_tokens + entry.params.max_new_tokens.value_or(0);
  const bool growing = entry.samples() && !entry.params.max_new_tokens;
  const std::int64_t wanted = growing ? std::min(options.context, entry.size() + kGrowth) : known;
  const std::int64_t least = growing ? entry.size() : known;
  entry.short_rope = wants_short_rope(entry);
  attach_known(entry);
  if (!fits(entry, least)) {
    entry.drop_pages();
    return false;
  }
  // Before room is made: the base's own pages may have to go for it.
  attach_base(entry);
  if (!reserve(entry, fits(entry, wanted) ? wanted : least)) {
    entry.drop_pages();
    return false;
  }
  waiting.erase(entry.id);
  entry.phase = Phase::running;
  entry.last_used = counters.steps;
  if (entry.admitted == Clock::time_point{}) {
    entry.admitted = now;
    entry.stats.queue_s = std::chrono::duration<double>(now - entry.submitted).count();
  }
  const auto place = std::upper_bound(running.begin(), running.end(), &entry,
                                      [](const Entry* a, const Entry* b) { return a->id < b->id; });
  running.insert(place, &entry);
  return true;
}

// Ropes with two sets of factors (longrope) take the short ones in sequences up to a length, by
// what the sequence is now: what it was made of before does not matter.
bool Engine::Impl::wants_short_rope(const Entry& entry) const {
  return entry.size() <= model.original_context();
}

// Gives the entry its sequence: empty, or the longest known prefix. The last prompt token is always
// computed, for its logits, and so is each whose logits are wanted.
void Engine::Impl::attach_known(Entry& entry) {
  entry.stats.cached_tokens = 0;
  if (prefixes && (!entry.wants_rows() || entry.params.logits_from > 0)) {
    const PrefixTree::Found found =
        prefixes->find(entry.prefix_key(), entry.tokens, most_known(entry));
    if (found.known > found.usable) entry.mark(found.known);
    if (found.usable > 0) {
      auto [sequence, pin] = prefixes->take(entry.prefix_key(), entry.tokens, found.usable);
      entry.kv = std::move(sequence);
      entry.shared = std::move(pin);
      if (entry.admitted == Clock::time_point{}) entry.stats.cached_tokens = found.usable;
      return;
    }
  }
  entry.kv.emplace(pool);
}

// Takes over from the entry's base what they have in common, whose keys and values the same adapter
// must have made, if that is more than what it has.
void Engine::Impl::attach_base(Entry& entry) {
  if (entry.source == nullptr) return;
  Entry& base = *entry.source;
  if (base.kv && base.short_rope == entry.short_rope && base.adapter == entry.adapter) {
    const std::int64_t most = std::min(base.length(), entry.most_shared());
    std::int64_t common = 0;
    while (common < most && base.tokens[common] == entry.tokens[common]) ++common;
    common = common_with_base(entry, base, common);
    const auto try_share = [&](const Sequence& from) {
      if (std::min(common, from.length()) <= entry.length()) return;
      Sequence sequence = from.fork();
      if (common < sequence.length()) sequence.truncate(common);
      if (sequence.length() <= entry.length()) return;
      // Pages that the tree holds too stay counted there.
      if (!begins_with_pages_of(sequence, *entry.kv)) entry.shared.reset();
      entry.kv = std::move(sequence);
    };
    try_share(*base.kv);
    if (base.prompt_kv) try_share(*base.prompt_kv);
    if (entry.admitted == Clock::time_point{}) entry.stats.cached_tokens = entry.length();
    base.last_used = counters.steps;
  }
  unpin_source(entry);
}

// Whether a sequence that is being prefilled will leave more of the entry's prompt in the prefix
// tree than there is now: then the entry waits for it, instead of computing the same beside it.
bool Engine::Impl::follows_running(Entry& entry) {
  if (!keeps_prefixes(entry) || entry.source != nullptr || !entry.samples()) return false;
  entry.short_rope = wants_short_rope(entry);
  std::int64_t usable = -1;
  for (Entry* other : running) {
    if (other->pending() <= 1 || other->prefix_key() != entry.prefix_key()) continue;
    // Asked at each step of a long prefill, for each that follows it: tokens are compared once.
    if (other->id == entry.follows && entry.shares > other->length()) return true;
    const std::int64_t most = std::min(other->size(), entry.size() - 1);
    std::int64_t common = 0;
    while (common < most && other->tokens[common] == entry.tokens[common]) ++common;
    common = common / kPageTokens * kPageTokens;
    if (common <= other->length()) continue;
    if (usable < 0) {
      usable = prefixes->find(entry.prefix_key(), entry.tokens, most_known(entry)).usable;
    }
    if (common <= usable) continue;
    other->mark(common);
    entry.follows = other->id;
    entry.shares = common;
    return true;
  }
  return false;
}

}  // namespace musespark

// What becomes of the keys and values of thoughts while a sequence grows: thoughts.h. In the step's
// thread, with the mutex held but for what takes long. Whatever is done is done at a length that
// follows from the tokens alone, and prefill stops there, so a sequence that is computed again
// comes out the same.
#include <algorithm>

#include "decode/engine_impl.h"
#include "model/rewrite_pages.h"

namespace musespark {
namespace {

std::int64_t page_after(std::int64_t slot) { return (slot + kPageTokens - 1) / kPageTokens; }

// The first slot of a thought, in the class without a window.
std::int64_t first_slot(const Entry& entry, std::int64_t index) {
  if (entry.evicting == index) return entry.evicting_from;
  return entry.thoughts.spans()[static_cast<std::size_t>(index)].begin - entry.kv->evicted();
}

// The page from which rows of a thought may go. Those before its first whole page stay, and those
// of the prompt, and the first page of all, where attention sinks sit.
std::int64_t first_evictable(const Entry& entry, std::int64_t index) {
  const std::int64_t prompt_end = entry.stats.prompt_tokens;  // nothing is evicted before it
  return std::max<std::int64_t>(1, page_after(std::max(first_slot(entry, index), prompt_end)));
}

// The length at which rows of a thought go next; -1: not before it ends.
std::int64_t eviction_at(const Entry& entry, std::int64_t index) {
  const ThoughtSpan& span = entry.thoughts.spans()[static_cast<std::size_t>(index)];
  const std::int64_t slots =
      first_evictable(entry, index) * kPageTokens + entry.params.thoughts.most_tokens;
  const std::int64_t length = slots + entry.kv->evicted();
  return span.end < 0 || length <= span.end ? length : -1;
}

}  // namespace

// The tokens from the sequence's length on that one step may compute at most.
std::int64_t Engine::Impl::rows_to_next_thought(const Entry& entry) const {
  const std::int64_t length = entry.length(), all = entry.pending();
  if (pool.window(0) > 0 || !(entry.demotes() || entry.evicts())) return all;
  const auto& spans = entry.thoughts.spans();
  for (std::size_t i = entry.thought_slots.size(); i < spans.size(); ++i) {
    if (entry.evicts()) {
      const std::int64_t at = eviction_at(entry, static_cast<std::int64_t>(i));
      if (at > length) return std::min(all, at - length);
    }
    if (spans[i].end >= length) return std::min(all, spans[i].end + 1 - length);
  }
  return all;
}

// After a step.
void Engine::Impl::settle_thoughts(Entry& entry) {
  const auto& spans = entry.thoughts.spans();
  const std::int64_t length = entry.length();
  while (entry.thought_slots.size() < spans.size()) {
    const auto index = static_cast<std::int64_t>(entry.thought_slots.size());
    const ThoughtSpan& span = spans[static_cast<std::size_t>(index)];
    if (pool.window(0) == 0 && entry.evicts() && eviction_at(entry, index) == length) {
      evict_thought(entry, index);
    }
    if (span.end < 0 || length <= span.end) return;
    const std::int64_t begin = first_slot(entry, index);
    entry.thought_slots.emplace_back(begin, span.end - entry.kv->evicted());
    if (entry.demotes()) demote_thought(entry);
  }
}

void Engine::Impl::evict_thought(Entry& entry, std::int64_t index) {
  const std::int64_t from = first_slot(entry, index), page = first_evictable(entry, index);
  const std::int64_t most = entry.params.thoughts.most_tokens, left = rows_left(most);
  {
    const Unlocked others(mutex);
    evict_rows(*entry.kv, page, left, entry.log, threads);
  }
  entry.stats.evicted_tokens += most - left;
  ++entry.stats.evictions;
  entry.evicting = index;
  entry.evicting_from = from;
}

// The thought that has just ended. Pages that another request demoted already stay.
void Engine::Impl::demote_thought(Entry& entry) {
  if (pool.window(0) > 0 || !pool.seals()) return;
  if (pool.full_bytes(0, KvForm::demoted) == pool.full_bytes(0, KvForm::body)) return;
  const auto [begin, end] = entry.thought_slots.back();
  std::int64_t page = std::max<std::int64_t>(1, page_after(begin));
  while (page * kPageTokens < end && pool.form(entry.kv->page(0, page)) == KvForm::demoted) ++page;
  const std::int64_t last = end / kPageTokens;
  if (page >= last) return;
  const Unlocked others(mutex);
  entry.stats.freed_bytes += demote_pages(*entry.kv, page, last, threads);
  entry.stats.demoted_pages += last - page;
}

// Tokens from the beginning on whose pages are those of any request that begins with them.
std::int64_t Engine::Impl::common_tokens(const Entry& entry) const {
  std::int64_t tokens = entry.size();
  if (entry.evicts()) tokens = std::min(tokens, entry.stats.prompt_tokens);
  if (!entry.demotes()) return tokens;
  for (const ThoughtSpan& span : entry.thoughts.spans()) {
    const std::int64_t end = span.end < 0 ? tokens : span.end;
    const std::int64_t page = std::max<std::int64_t>(1, page_after(span.begin));
    if (page < end / kPageTokens) return std::min(tokens, page * kPageTokens);
  }
  return tokens;
}

// How many of the first `common` tokens, the same in both, the entry may take from the base.
std::int64_t Engine::Impl::common_with_base(const Entry& entry, const Entry& base,
                                            std::int64_t common) const {
  if (entry.evicts()) common = std::min(common, entry.stats.prompt_tokens);
  if (entry.demotes() != base.demotes()) {
    common = std::min({common, common_tokens(entry), common_tokens(base)});
  }
  if (!entry.demotes() || !base.demotes()) return common;
  // A thought that goes on otherwise than the base's was not demoted while it was written.
  for (const ThoughtSpan& span : base.thoughts.spans()) {
    const bool inside = span.begin < common && (span.end < 0 || common <= span.end);
    if (inside) common = std::min(common, page_after(span.begin) * kPageTokens);
  }
  return common;
}

void Engine::Impl::count_thoughts(Entry& entry) const {
  RequestStats& stats = entry.stats;
  stats.thought_tokens = entry.thoughts.count(stats.prompt_tokens, entry.size());
  stats.thought_bytes = 0;
  if (!entry.kv || pool.window(0) > 0) return;
  const std::int64_t pages = page_after(entry.length()) - page_after(entry.kv->slots(0));
  stats.freed_bytes += pages * pool.full_bytes(0, KvForm::body);
  const auto& spans = entry.thoughts.spans();
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const bool ended = i < entry.thought_slots.size();
    if (spans[i].end >= 0 && spans[i].end < stats.prompt_tokens) continue;
    const std::int64_t first = first_slot(entry, static_cast<std::int64_t>(i));
    const std::int64_t begin = ended ? entry.thought_slots[i].first : first;
    const std::int64_t end = ended ? entry.thought_slots[i].second : entry.kv->slots(0);
    for (std::int64_t p = page_after(std::max(begin, stats.prompt_tokens));
         (p + 1) * kPageTokens <= end; ++p) {
      stats.thought_bytes += pool.bytes(entry.kv->page(0, p));
    }
  }
}

}  // namespace musespark

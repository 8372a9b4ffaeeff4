// Rows in place of looked-up embeddings: asked for when keys and values are to be made of them, and
// kept until the sequence ends, for it may have to be computed again.
#include <algorithm>
#include <string>
#include <utility>

#include "decode/engine_impl.h"

namespace musespark {

void Engine::Impl::provide_rows(RequestId id, std::int64_t index, std::int64_t count,
                                SharedFloats rows, std::vector<SharedFloats> taps) {
  const std::lock_guard lock(mutex);
  check_given_out(id);
  const auto found = entries.find(id);
  if (found == entries.end() || found->second->phase == Phase::retained) return;
  Entry& entry = *found->second;
  const auto spans_given = static_cast<std::int64_t>(entry.params.given.size());
  if (index < 0 || index >= spans_given) {
    throw InvalidRequest("index: got " + std::to_string(index) + ", the request has " +
                         std::to_string(spans_given) + " spans of given rows");
  }
  GivenRows& given = entry.params.given[static_cast<std::size_t>(index)];
  if (given.rows) return;  // a step may read them
  if (count != given.count) {
    throw InvalidRequest("rows: got " + std::to_string(count) + ", given[" + std::to_string(index) +
                         "] has " + std::to_string(given.count));
  }
  GivenRows complete = given;
  complete.taps = std::move(taps);
  complete.rows = std::move(rows);
  check_given({&complete, 1}, model.spec(), entry.stats.prompt_tokens);
  given = std::move(complete);
  stalled = false;
}

// With the step's mutex held: reports the rows that the sequence needs and has not.
void Engine::Impl::ask_for_rows(Entry& entry) {
  for (std::size_t i = 0; i < entry.params.given.size(); ++i) {
    const GivenRows& given = entry.params.given[i];
    if (given.rows || entry.asked[i] || given.end() <= entry.length()) continue;
    entry.asked[i] = true;
    events->emplace_back(RowsWantedEvent{entry.id, static_cast<std::int64_t>(i)});
    return_early = true;
  }
}

// The most rows that one step may compute of a request of `tokens` tokens.
std::int64_t Engine::Impl::rows_at_once(std::int64_t tokens,
                                        const std::vector<GivenRows>& given) const {
  std::int64_t most = std::min(options.prefill_chunk, tokens);
  if (!model.spec().mutual_rows) return most;
  for (const GivenRows& span : given) most = std::max(most, span.count);
  return most;
}

// Tokens from the sequence's length on whose embeddings are there.
std::int64_t Engine::Impl::ready_rows(const Entry& entry) const {
  std::int64_t end = entry.size();
  for (const GivenRows& given : entry.params.given) {
    if (!given.rows && given.end() > entry.length()) end = std::min(end, given.first);
  }
  return std::max<std::int64_t>(0, end - entry.length());
}

// At most `count` rows, or what is left of a span whose rows see each other: it is not cut.
std::int64_t Engine::Impl::whole_spans(const Entry& entry, std::int64_t count) const {
  if (!model.spec().mutual_rows || count == 0) return count;
  const std::int64_t begin = entry.length(), end = begin + count;
  for (const GivenRows& given : entry.params.given) {
    if (given.first >= end || given.end() <= end) continue;
    return given.first > begin ? given.first - begin : given.end() - begin;
  }
  return count;
}

}  // namespace musespark

#include "decode/thoughts.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kMostThoughtTokens = (std::int64_t{1} << 31) - 1;

bool ends_with(std::span<const std::int32_t> tokens, const std::vector<std::int32_t>& marks) {
  return tokens.size() >= marks.size() &&
         std::ranges::equal(tokens.last(marks.size()), std::span(marks));
}

void check_ids(const char* field, const std::vector<std::int32_t>& ids, std::int64_t vocab) {
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < vocab) continue;
    throw InvalidRequest(std::string(field) + ": got " + std::to_string(id) +
                         ", allowed is a token id from 0 to " + std::to_string(vocab - 1));
  }
}

}  // namespace

void ThoughtTracker::see(const ThoughtParams& params, std::span<const std::int32_t> tokens) {
  const auto size = static_cast<std::int64_t>(tokens.size());
  for (; seen_ < size; ++seen_) {
    const std::int32_t token = tokens[static_cast<std::size_t>(seen_)];
    if (open()) {
      if (std::ranges::find(params.closes, token) != params.closes.end()) {
        spans_.back().end = seen_;
        in_header_ = token == params.header;
      }
      continue;
    }
    const bool heads = in_header_ || token == params.header;
    if (!heads) ++said_;
    open_where_marked(params, tokens.first(static_cast<std::size_t>(seen_ + 1)));
    in_header_ = heads && token != params.content;
  }
}

void ThoughtTracker::open_where_marked(const ThoughtParams& params,
                                       std::span<const std::int32_t> so_far) {
  if (params.content >= 0 && so_far.back() != params.content) return;  // as all of them end
  const auto opens = [&](const auto& marks) { return ends_with(so_far, marks); };
  const auto marks = std::ranges::find_if(params.opens, opens);
  if (marks == params.opens.end()) return;
  spans_.push_back({seen_ + 1, -1});
  if (params.content < 0) said_ -= static_cast<std::int64_t>(marks->size());
}

std::int64_t ThoughtTracker::count(std::int64_t first, std::int64_t size) const {
  std::int64_t tokens = 0;
  for (const ThoughtSpan& span : spans_) {
    const std::int64_t end = span.end < 0 ? size : std::min(span.end, size);
    tokens += std::max<std::int64_t>(0, end - std::max(span.begin, first));
  }
  return tokens;
}

void check_thoughts(const ThoughtParams& params, std::int64_t vocab) {
  const std::int64_t most = params.most_tokens;
  if (most != 0 && (most < kLeastThoughtTokens || most > kMostThoughtTokens)) {
    throw InvalidRequest("thoughts.most_tokens: got " + std::to_string(most) +
                         ", allowed is 0 or " + std::to_string(kLeastThoughtTokens) + " to " +
                         std::to_string(kMostThoughtTokens));
  }
  for (const auto& marks : params.opens) {
    if (marks.empty()) {
      throw InvalidRequest("thoughts.opens: got no marker, allowed is at least one token id");
    }
    check_ids("thoughts.opens", marks, vocab);
    if (params.content >= 0 && marks.back() != params.content) {
      throw InvalidRequest(
          "thoughts.opens: got one that ends with " + std::to_string(marks.back()) +
          ", allowed is the end of thoughts.header, " + std::to_string(params.content));
    }
  }
  check_ids("thoughts.closes", params.closes, vocab);
  if (params.header >= 0 || params.content >= 0) {
    check_ids("thoughts.header", {params.header, params.content}, vocab);
  }
}

}  // namespace musespark

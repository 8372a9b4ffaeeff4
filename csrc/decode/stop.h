// When a sequence ends. Rules on ids and lengths only; stop strings belong to where the text is.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace musespark {

enum class FinishReason : std::uint32_t {
  stop,    // a stop id; it is the last token reported
  length,  // max_new_tokens, or the context is full
  cancelled,
  deadline,
  error,
};
std::string_view to_string(FinishReason reason);

class StopRules {
 public:
  // `limit`: completion tokens at most (max_new_tokens, or what the context leaves).
  StopRules(std::vector<std::int32_t> stop_ids, std::int64_t min_new_tokens, std::int64_t limit);

  // Ids that may not be chosen as completion token number `index` (from 0): the stop ids while
  // index < min_new_tokens.
  std::span<const std::int32_t> blocked(std::int64_t index) const;

  // Whether the sequence ends with `token` as its last of `count` completion tokens; sets *reason.
  bool ends(std::int32_t token, std::int64_t count, FinishReason* reason) const;

  std::int64_t limit() const { return limit_; }

 private:
  std::vector<std::int32_t> stop_ids_;  // ascending
  std::int64_t min_new_tokens_;
  std::int64_t limit_;
};

}  // namespace musespark

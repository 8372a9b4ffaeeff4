#include "decode/stop.h"

#include <algorithm>

namespace musespark {

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::deadline:
      return "deadline";
    case FinishReason::error:
      return "error";
  }
  return "?";
}

StopRules::StopRules(std::vector<std::int32_t> stop_ids, std::int64_t min_new_tokens,
                     std::int64_t limit)
    : stop_ids_(std::move(stop_ids)), min_new_tokens_(min_new_tokens), limit_(limit) {
  std::sort(stop_ids_.begin(), stop_ids_.end());
}

std::span<const std::int32_t> StopRules::blocked(std::int64_t index) const {
  if (index >= min_new_tokens_) return {};
  return stop_ids_;
}

bool StopRules::ends(std::int32_t token, std::int64_t count, FinishReason* reason) const {
  if (std::binary_search(stop_ids_.begin(), stop_ids_.end(), token)) {
    *reason = FinishReason::stop;
    return true;
  }
  if (count >= limit_) {
    *reason = FinishReason::length;
    return true;
  }
  return false;
}

}  // namespace musespark

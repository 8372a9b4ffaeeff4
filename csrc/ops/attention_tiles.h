// How many query rows are taken together (attention.cc, attention_plan.cc).
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/attention.h"

namespace musespark {

// Query rows (positions x query heads of the group) a kernel call takes together: enough that a
// merge chunk of keys and values, read from the second-level cache, serves many. (256 against 64
// rows, four query heads to a KV head: 10% less time for a prefill of 512.)
inline constexpr std::int64_t kTileRows = 256;

inline std::int64_t tile_positions(const AttentionShape& shape) {
  return std::clamp<std::int64_t>(kTileRows / shape.group(), 1, kPageTokens);
}

inline std::int64_t most_tile_rows(const AttentionShape& shape) {
  return std::max(tile_positions(shape) * shape.group(), kTileRows);
}

}  // namespace musespark

// The largest values of one row, on the caller's thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace musespark {

inline constexpr std::size_t kMostLargest = 64;

// The k largest (all, where there are fewer), in an order that the row alone decides, but the
// largest first; k <= kMostLargest, or InvalidRequest. The row has no NaN. `memory` is to be
// reused: it holds what is returned.
std::span<const float> largest_values(std::span<const float> row, std::size_t k,
                                      std::vector<float>& memory);

}  // namespace musespark

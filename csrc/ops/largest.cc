#include "ops/largest.h"

#include <algorithm>
#include <array>
#include <functional>
#include <string>

#include "base/errors.h"
#include "kernels/dispatch.h"

namespace musespark {

static_assert(kMostLargest == kMaximaLanes);

// The k-th largest value is no smaller than the k-th largest maximum of a lane, and few values are
// larger than that one: those alone are seen.
std::span<const float> largest_values(std::span<const float> row, std::size_t k,
                                      std::vector<float>& memory) {
  if (k > kMostLargest) {
    throw InvalidRequest("[largest_values] k: got " + std::to_string(k) + ", allowed are up to " +
                         std::to_string(kMostLargest));
  }
  k = std::min(k, row.size());
  if (k == 0) return {};
  const RowwiseKernels& kernels = musespark::kernels().rowwise;
  const auto size = static_cast<std::int64_t>(row.size());
  const auto kth = static_cast<std::ptrdiff_t>(k - 1);
  std::array<float, kMaximaLanes> maxima;
  kernels.lane_maxima(row.data(), size, maxima.data());
  std::ranges::nth_element(maxima, maxima.begin() + kth, std::greater<>());
  memory.resize(std::max(memory.size(), row.size()));
  const std::int64_t found = kernels.collect(row.data(), maxima[k - 1], size, memory.data());
  const std::span few = std::span(memory).first(static_cast<std::size_t>(found));
  std::ranges::nth_element(few, few.begin() + kth, std::greater<>());
  std::ranges::iter_swap(few.begin(), std::ranges::max_element(few.first(k)));
  return few.first(k);
}

}  // namespace musespark

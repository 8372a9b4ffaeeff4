#include "ops/largest.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <string>

#include "base/errors.h"
#include "kernels/dispatch.h"

namespace musespark {
namespace {

static_assert(kMostLargest == kMaximaLanes);
constexpr std::size_t kBlock = 16;
static_assert(kMaximaLanes % kBlock == 0);

// Floats as integers in their order, and back.
std::int32_t key_of(float value) {
  const auto bits = std::bit_cast<std::int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
float value_of(std::int64_t key) {
  const auto bits = static_cast<std::int32_t>(key);
  return std::bit_cast<float>(bits ^ ((bits >> 31) & 0x7fffffff));
}

// Of whole blocks: a loop of known length becomes vector code.
std::size_t count_from(std::span<const float> values, float least) {
  std::int32_t count = 0;
  for (std::size_t i = 0; i < values.size(); i += kBlock) {
    for (std::size_t j = 0; j < kBlock; ++j) count += values[i + j] >= least ? 1 : 0;
  }
  return static_cast<std::size_t>(count);
}

// A bound that k of the values reach, or up to `most`; where equals do not allow that, as few more
// as there can be. At least k of them reach `low`, none is above `high`. By bisection: few branches
// depend on the values, of those of a selection by swaps every one.
float bound_of_largest(std::span<const float> values, std::size_t k, std::size_t most, float low,
                       float high) {
  std::int64_t reached = key_of(low), missed = std::int64_t{key_of(high)} + 1;
  while (missed - reached > 1) {
    const std::int64_t middle = reached + (missed - reached) / 2;
    const std::size_t count = count_from(values, value_of(middle));
    if (count >= k && count <= most) return value_of(middle);
    (count > k ? reached : missed) = middle;
  }
  return value_of(reached);
}

// The first k of those that reach the bound and, where they are more, are above it.
void keep_largest(std::span<float> values, std::size_t k, float bound) {
  std::size_t above = 0, kept = 0;
  for (const float value : values) above += value > bound ? 1 : 0;
  std::size_t equals = k - above;
  for (const float value : values) {
    const bool equal = value == bound && equals > 0;
    values[kept] = value;
    kept += value > bound || equal ? 1 : 0;
    equals -= equal ? 1 : 0;
  }
}

}  // namespace

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
  std::array<float, kMaximaLanes> maxima;
  kernels.lane_maxima(row.data(), size, maxima.data());
  const auto [low, high] = std::ranges::minmax(maxima);
  const float least = bound_of_largest(maxima, k, k + k / 4, low, high);

  memory.resize(std::max(memory.size(), row.size() + kBlock));
  const auto found =
      static_cast<std::size_t>(kernels.collect(row.data(), least, size, memory.data()));
  const std::size_t whole = (found + kBlock - 1) / kBlock * kBlock;
  std::fill(memory.begin() + static_cast<std::ptrdiff_t>(found),
            memory.begin() + static_cast<std::ptrdiff_t>(whole),
            -std::numeric_limits<float>::infinity());
  const std::span few = std::span(memory).first(whole);
  keep_largest(few.first(found), k, bound_of_largest(few, k, k, least, high));
  std::ranges::iter_swap(few.begin(), std::ranges::max_element(few.first(k)));
  return few.first(k);
}

}  // namespace musespark

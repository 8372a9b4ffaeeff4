#include "decode/signals.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "base/math64.h"
#include "ops/softmax.h"

namespace musespark {
namespace {

// From kLongRow values on fewer, longer blocks are quicker to look through.
constexpr std::size_t kLongRow = 1 << 14, kBlock = 32, kLongBlock = 256;

// A row in blocks, with the largest value of each.
class Blocks {
 public:
  // `memory` is the object's as long as it lives.
  Blocks(std::span<const float> row, std::vector<float>& memory)
      : row_(row),
        size_(row.size() < kLongRow ? kBlock : kLongBlock),
        count_((row.size() + size_ - 1) / size_) {
    memory.resize(std::max(memory.size(), 2 * count_ + row.size()));
    maxima_ = std::span(memory).first(count_);
    rest_ = std::span(memory).subspan(count_);
    for (std::size_t i = 0; i < count_; ++i) maxima_[i] = row_max(block(i));
  }

  float max() const { return std::ranges::max(maxima_); }
  double mean_of_largest(std::size_t k);

 private:
  std::span<const float> block(std::size_t i) const {
    return row_.subspan(i * size_, std::min(size_, row_.size() - i * size_));
  }

  std::span<const float> row_;
  std::size_t size_, count_;
  std::span<float> maxima_, rest_;
};

// Of the k largest values (all, where there are fewer). The k-th largest is no smaller than the
// k-th largest maximum of a block, so few values of few blocks need to be looked at.
double Blocks::mean_of_largest(std::size_t k) {
  k = std::min(k, row_.size());
  float least = -std::numeric_limits<float>::infinity();
  if (count_ >= k) {
    const std::span sorted = rest_.first(count_);
    std::ranges::copy(maxima_, sorted.begin());
    std::ranges::nth_element(sorted, sorted.begin() + static_cast<std::ptrdiff_t>(k - 1),
                             std::greater<>());
    least = sorted[k - 1];
  }
  std::size_t found = 0;
  for (std::size_t i = 0; i < count_; ++i) {
    if (maxima_[i] < least) continue;
    for (const float value : block(i)) {
      rest_[found] = value;  // what is too small, the next one overwrites
      found += value >= least ? 1 : 0;
    }
  }
  const std::span largest = rest_.first(found);
  std::ranges::partial_sort(largest, largest.begin() + static_cast<std::ptrdiff_t>(k),
                            std::greater<>());
  double sum = 0;
  for (const float value : largest.first(k)) sum += static_cast<double>(value);
  return sum / static_cast<double>(k);
}

}  // namespace

float end_margin(std::span<const float> row, std::int32_t close) {
  return row_max(row) - row[static_cast<std::size_t>(close)];
}

TokenSignals token_signals(std::span<const float> row, std::int32_t token, std::int32_t close,
                           std::vector<float>& memory) {
  Blocks blocks(row, memory);
  const float max = blocks.max();
  const ExpMoments moments = exp_moments(row, max);
  const double log_sum = math64::log(moments.sum);
  const double normalizer = static_cast<double>(max) + log_sum;
  TokenSignals out;
  out.margin = max - row[static_cast<std::size_t>(close)];
  out.logprob = static_cast<float>(row[static_cast<std::size_t>(token)] - normalizer);
  out.entropy = static_cast<float>(std::max(0.0, log_sum - moments.weighted / moments.sum));
  out.confidence = static_cast<float>(normalizer - blocks.mean_of_largest(kConfidenceTop));
  return out;
}

}  // namespace musespark

#include "decode/signals.h"

#include <algorithm>
#include <numeric>

#include "base/math64.h"
#include "ops/largest.h"
#include "ops/softmax.h"

namespace musespark {

float end_margin(std::span<const float> row, std::int32_t close) {
  return row_max(row) - row[static_cast<std::size_t>(close)];
}

TokenSignals token_signals(std::span<const float> row, std::int32_t token, std::int32_t close,
                           std::vector<float>& memory) {
  const std::span<const float> top = largest_values(row, kConfidenceTop, memory);
  const float max = top.front();
  const ExpMoments moments = exp_moments(row, max);
  const double log_sum = math64::log(moments.sum);
  const double normalizer = static_cast<double>(max) + log_sum;
  TokenSignals out;
  out.margin = max - row[static_cast<std::size_t>(close)];
  out.logprob = static_cast<float>(row[static_cast<std::size_t>(token)] - normalizer);
  out.entropy = static_cast<float>(std::max(0.0, log_sum - moments.weighted / moments.sum));
  const double top_sum = std::accumulate(top.begin(), top.end(), 0.0);
  out.confidence = static_cast<float>(normalizer - top_sum / static_cast<double>(top.size()));
  return out;
}

}  // namespace musespark

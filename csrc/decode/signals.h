// Signals of a thought: what the row of logits that a token was chosen from says of it. The row is
// the model's own, before bias, penalties, temperature and filters; p is its softmax, all in nats.
//
//   margin      max l - l[close]: how far the marker that ends the thought is below the likeliest
//               token; 0 where it is the likeliest (ThinkBrake, arXiv:2510.00546)
//   logprob     ln p[token]
//   entropy     -sum p ln p
//   confidence  -(sum of ln p over the k = 20 likeliest) / k: DeepConf's token confidence
//               (arXiv:2508.15260); the surer the model, the larger
//
// The plain twin is python/musespark/reference/signals.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

inline constexpr std::size_t kConfidenceTop = 20;

struct TokenSignals {
  float margin = 0, logprob = 0, entropy = 0, confidence = 0;
};

// max row - row[close].
float end_margin(std::span<const float> row, std::int32_t close);

// Of `token`; `row` is finite, `memory` is to be reused. Expects FloatEnv's environment.
TokenSignals token_signals(std::span<const float> row, std::int32_t token, std::int32_t close,
                           std::vector<float>& memory);

}  // namespace musespark

// Tables of the rotary position embedding.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"

namespace musespark {

// The frequencies, as transformers' modeling_rope_utils makes them: float32, in its order of
// operations, with powers and logarithms of base/math64 rounded once.
struct RopeFrequencies {
  enum class Scaling : std::uint8_t { none, linear, llama3, yarn, factors };
  std::int64_t dim;
  double theta;
  Scaling scaling;
  double factor;
  double low_freq_factor, high_freq_factor;  // llama3
  double beta_fast, beta_slow;               // yarn
  std::int64_t original_context;             // llama3, yarn
  std::vector<float> factors;                // factors: [dim / 2]
};
// [dim / 2], radians per position.
std::vector<float> rope_inverse_frequencies(const RopeFrequencies& spec);

// cos and sin of float(position) * inverse_frequency (a float32 product; cos and sin in double,
// each rounded to float32, then times the attention factor) for positions from 0, grown on demand.
class RopeTable {
 public:
  RopeTable(std::vector<float> inverse_frequencies, float attention_factor);

  // Makes positions below `positions` (at most kMaxPositions) readable. Not while others read.
  void extend(std::int64_t positions);

  std::int64_t half() const { return static_cast<std::int64_t>(frequencies_.size()); }
  const float* cos(std::int64_t position) const {
    return blocks_[static_cast<std::size_t>(position / kBlock)].as<float>() +
           position % kBlock * 2 * half();
  }
  const float* sin(std::int64_t position) const { return cos(position) + half(); }

  static constexpr std::int64_t kMaxPositions = std::int64_t{1} << 20;
  // Positions computed at once: [kBlock][cos, sin][half].
  static constexpr std::int64_t kBlock = 128;

 private:
  std::vector<float> frequencies_;
  float attention_factor_;
  std::vector<AlignedBuffer> blocks_;
};

}  // namespace musespark

// Tables of the rotary position embedding.
#pragma once

#include <array>
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

// A row's position along each of three axes: time, height and width of what an image shows, the
// same number three times for text.
using RopePlace = std::array<std::int32_t, 3>;

// cos and sin of float(position) * inverse_frequency (a float32 product; cos and sin in double,
// each rounded to float32, then times the attention factor) for positions from 0, grown on demand.
class RopeTable {
 public:
  // axes: by pair, the axis whose position turns it (0 .. 2); empty: positions have one axis.
  RopeTable(std::vector<float> inverse_frequencies, float attention_factor,
            std::vector<std::uint8_t> axes = {});

  // Makes positions below `positions` (at most kMaxPositions) readable. Not while others read.
  void extend(std::int64_t positions);

  std::int64_t half() const { return static_cast<std::int64_t>(frequencies_.size()); }
  const float* cos(std::int64_t position) const {
    return blocks_[static_cast<std::size_t>(position / kBlock)].as<float>() +
           position % kBlock * 2 * half();
  }
  const float* sin(std::int64_t position) const { return cos(position) + half(); }
  bool by_axis() const { return !axes_.empty(); }
  // cos, then sin [half] of a place, each pair's from the position along its axis.
  void at(const RopePlace& place, float* cos_sin) const;

  static constexpr std::int64_t kMaxPositions = std::int64_t{1} << 20;
  // Positions computed at once: [kBlock][cos, sin][half].
  static constexpr std::int64_t kBlock = 128;

 private:
  std::vector<float> frequencies_;
  float attention_factor_;
  std::vector<std::uint8_t> axes_;
  std::vector<AlignedBuffer> blocks_;
};

}  // namespace musespark

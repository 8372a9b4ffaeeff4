// The weights of a resampler along one axis, as Pillow's Resample.c computes them
// (precompute_coeffs and normalize_coeffs_8bpc).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/image/image.h"
#include "ops/image.h"

namespace musespark {

class AxisWeights {
 public:
  // Outputs [0, size) cover inputs from `begin` to `end` of an axis of `length`; 0 <= begin < end
  // <= length, all sides at most kLongestSide. Not for Resample::nearest.
  AxisWeights(Resample filter, std::int64_t length, float begin, float end, std::int64_t size);

  const ResampleAxis& axis() const { return axis_; }
  AxisWeights(const AxisWeights&) = delete;
  AxisWeights& operator=(const AxisWeights&) = delete;

 private:
  void set_output(std::int64_t index, const std::vector<double>& weights);

  std::vector<std::int32_t> first_, count_;
  std::vector<std::int16_t> high_, low_;
  ResampleAxis axis_;
};

}  // namespace musespark

// Softmax of one row on the caller's thread, for the sampler and the signals of thoughts: the
// maximum, the exponentials (whose sums are the sampler's own, in double), their moments. Expects
// FloatEnv's environment.
#pragma once

#include <cstdint>
#include <span>

namespace musespark {

// The largest value; a NaN is never taken, an empty row gives -infinity.
float row_max(std::span<const float> row);

// Of e = exp(z), z = max(-104, row - max): the sums of e and of z * e.
struct ExpMoments {
  double sum = 0, weighted = 0;
};
ExpMoments exp_moments(std::span<const float> row, float max);

// out[i] = exp(row[i]). Throws InvalidRequest where the lengths differ.
void exponentials(std::span<const float> row, std::span<float> out);

}  // namespace musespark

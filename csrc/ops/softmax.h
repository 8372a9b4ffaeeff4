// Softmax of one row on the caller's thread, for the sampler: the maximum and the exponentials.
// Sums are the sampler's own, in double. Expects FloatEnv's environment.
#pragma once

#include <cstdint>
#include <span>

namespace musespark {

// The largest value; a NaN is never taken, an empty row gives -infinity.
float row_max(std::span<const float> row);

// out[i] = exp(row[i]). Throws InvalidRequest where the lengths differ.
void exponentials(std::span<const float> row, std::span<float> out);

}  // namespace musespark

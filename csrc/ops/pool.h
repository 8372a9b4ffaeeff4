// From the rows of a text to one row, and sums whose order is ours.
#pragma once

#include <cstdint>

#include "kernels/dispatch.h"

namespace musespark {

// sum x[i] * w[i]: 16 lanes (lane = index mod 16, ascending), each product and sum rounded, then
// the tree of kernels/rowwise.
float dot(const float* x, const float* w, std::int64_t n);

// out = the mean of rows [0, count) of x [count][ldx], rows added ascending.
void mean_row(const KernelTable& kernels, const float* x, std::int64_t ldx, std::int64_t count,
              std::int64_t n, float* out);

// x / max(|x|, 1e-12), in place.
void normalize_row(const KernelTable& kernels, float* x, std::int64_t n);

}  // namespace musespark

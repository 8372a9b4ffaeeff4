// Dense linear algebra for calibration, on Eigen with BLAS underneath, one thread. Its bits depend
// on the BLAS and on the processor: it decides how a file is made, never what a file means.
#pragma once

#include <cstdint>

namespace musespark {

// What error feedback needs (formats/pack.h: PackGuide) of H = products + damping * mean(diag) * I:
// with H = M M^T, M upper triangular, factor[i][k] = M[i][k] / M[k][k] above the diagonal and zero
// elsewhere.
//
// products: [n][n], j >= i is read, their diagonal not all zero. All rows lie side by side.
// Throws InvalidRequest for numbers that are not finite, a damping outside (0, 1], or an H that is
// not positive definite; MemoryBudgetExceeded where there is no room for n * n doubles.
void factor_products(const float* products, std::int64_t n, double damping, float* factor);

}  // namespace musespark

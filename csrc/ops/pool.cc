#include "ops/pool.h"

#include <algorithm>
#include <cmath>

namespace musespark {

float dot(const float* x, const float* w, std::int64_t n) {
  float lanes[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; ++l) lanes[l] += x[i + l] * w[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] += x[i] * w[i];
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

void mean_row(const KernelTable& kernels, const float* x, std::int64_t ldx, std::int64_t count,
              std::int64_t n, float* out) {
  std::copy_n(x, n, out);
  for (std::int64_t row = 1; row < count; ++row) kernels.rowwise.add(out, x + row * ldx, n, out);
  kernels.rowwise.scale(out, 1.0f / static_cast<float>(count), n, out);
}

void normalize_row(const KernelTable& kernels, float* x, std::int64_t n) {
  constexpr float kLeast = 1e-12f;
  const float length = std::sqrt(dot(x, x, n));
  kernels.rowwise.scale(x, 1.0f / (length > kLeast ? length : kLeast), n, x);
}

}  // namespace musespark

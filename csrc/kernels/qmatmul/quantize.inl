// quantize_rows from what a level brings: two functions of 64 columns, two of the columns that
// share a longer scale.
#pragma once

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// Bits of max |x| of 64 columns, of which `left` exist (64 or more: all).
inline std::int32_t group_amax(const float* x, std::int64_t left);
// Their codes, and the sums of those over columns 0..31 and 32..63.
inline void group_codes(const float* x, std::int64_t left, float inverse, std::int8_t* q,
                        std::int32_t* sum);

// The first of these of `n` columns; the second too, and of their codes, zeros up to a multiple of
// 64, the sum.
inline std::int32_t long_amax(const float* x, std::int64_t n);
inline std::int32_t long_codes(const float* x, std::int64_t n, float inverse, std::int8_t* q);

// Both by 64 columns, for levels where that is as fast.
[[maybe_unused]] inline std::int32_t amax_by_groups(const float* x, std::int64_t n) {
  std::int32_t most = 0;
  for (std::int64_t i = 0; i < n; i += kActGroup) {
    const std::int32_t bits = group_amax(x + i, n - i);
    if (bits > most) most = bits;
  }
  return most;
}
[[maybe_unused]] inline std::int32_t codes_by_groups(const float* x, std::int64_t n, float inverse,
                                                     std::int8_t* q) {
  std::int32_t all = 0;
  for (std::int64_t i = 0; i < n; i += kActGroup) {
    std::int32_t sum[2];
    group_codes(x + i, n - i, inverse, q + i, sum);
    all += sum[0] + sum[1];
  }
  return all;
}

// x, or where fewer than 64 columns are left a copy made up with zeros.
inline const float* whole_group(const float* x, std::int64_t left, float (&copy)[kActGroup]) {
  if (left >= kActGroup) return x;
  for (std::int64_t i = 0; i < kActGroup; ++i) copy[i] = i < left ? x[i] : 0.0f;
  return copy;
}

// Columns from k on that share a scale, of row `row`: `x` has `left` of them or more.
inline void quantize_columns(const float* x, std::int64_t left, std::int64_t row, std::int64_t k,
                             const QuantizedRows& out) {
  std::int8_t* q = out.q + row * out.stride + k;
  const std::int64_t first = (row * out.cols + k) / kActGroup;
  const std::int64_t end = left < out.group ? left : out.group;
  const std::int32_t amax_bits = end <= kActGroup ? group_amax(x, left) : long_amax(x, end);
  const bool finite = amax_bits < 0x7f800000;
  float amax;
  __builtin_memcpy(&amax, &amax_bits, 4);
  const bool used = finite && !(amax < 1e-30f);
  const float scale = used ? amax / 127.0f : finite ? 0.0f : __builtin_nanf("");
  const float inverse = used ? 127.0f / amax : 0.0f;
  const std::int64_t groups = (end + kActGroup - 1) / kActGroup;
  if (out.group == kActGroup) {
    std::int32_t sum[2] = {0, 0};
    if (used) {
      group_codes(x, left, inverse, q, sum);
    } else {
      __builtin_memset(q, 0, kActGroup);
    }
    out.scale[first] = scale;
    out.bias[first] = -128 * (sum[0] + sum[1]);
    out.half_bias[2 * first] = -128 * sum[0];
    out.half_bias[2 * first + 1] = -128 * sum[1];
    return;
  }
  std::int32_t all = 0;
  if (used) {
    all = long_codes(x, end, inverse, q);
  } else {
    __builtin_memset(q, 0, static_cast<std::size_t>(groups) * kActGroup);
  }
  for (std::int64_t at = first; at < first + groups; ++at) {
    out.scale[at] = scale;
    out.bias[at] = out.half_bias[2 * at] = out.half_bias[2 * at + 1] = 0;
  }
  out.bias[first] = out.half_bias[2 * first] = -128 * all;
}

inline void quantize_all(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                         const QuantizedRows& out) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t at = 0; at < k; at += out.group) {
      quantize_columns(x + i * ldx + at, k - at, i, at, out);
    }
  }
}

}  // namespace
}  // namespace musespark

// quantize_rows from what a level brings: two functions of 64 columns.
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
  std::int32_t amax_bits = 0;
  for (std::int64_t i = 0; i < end; i += kActGroup) {
    const std::int32_t bits = group_amax(x + i, left - i);
    if (bits > amax_bits) amax_bits = bits;
  }
  const bool finite = amax_bits < 0x7f800000;
  float amax;
  __builtin_memcpy(&amax, &amax_bits, 4);
  const bool used = finite && !(amax < 1e-30f);
  const float scale = used ? amax / 127.0f : finite ? 0.0f : __builtin_nanf("");
  const float inverse = used ? 127.0f / amax : 0.0f;
  std::int64_t at = first;
  std::int32_t all = 0;
  for (std::int64_t i = 0; i < end; i += kActGroup, ++at) {
    std::int32_t sum[2] = {0, 0};
    if (used) {
      group_codes(x + i, left - i, inverse, q + i, sum);
    } else {
      __builtin_memset(q + i, 0, kActGroup);
    }
    const bool apart = out.group == kActGroup;
    all += sum[0] + sum[1];
    out.scale[at] = scale;
    out.bias[at] = apart ? -128 * all : 0;
    out.half_bias[2 * at] = apart ? -128 * sum[0] : 0;
    out.half_bias[2 * at + 1] = apart ? -128 * sum[1] : 0;
  }
  out.bias[first] = -128 * all;
  if (out.group != kActGroup) out.half_bias[2 * first] = -128 * all;
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

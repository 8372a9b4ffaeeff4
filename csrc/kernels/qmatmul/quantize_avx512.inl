// quantize_rows for 512-bit vectors: one group of 64 columns = four vectors.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// Lanes of vector v (16 columns each) that exist when `left` columns remain in the group.
inline __mmask16 columns_mask(std::int64_t left, int v) {
  const std::int64_t n = left - 16 * v;
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

inline void quantize_group(const float* x, std::int64_t left, std::int8_t* q, float* scale,
                           std::int32_t* bias, std::int32_t* half_bias) {
  const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
  __m512 v[4];
  __m512i amax_i32x16 = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_maskz_loadu_ps(columns_mask(left, i), x + 16 * i);
    amax_i32x16 =
        _mm512_max_epi32(amax_i32x16, _mm512_and_si512(_mm512_castps_si512(v[i]), no_sign));
  }
  const std::int32_t amax_bits = _mm512_reduce_max_epi32(amax_i32x16);
  float amax;
  __builtin_memcpy(&amax, &amax_bits, 4);
  if (amax_bits >= 0x7f800000 || amax < 1e-30f) {
    const std::uint32_t scale_bits = amax_bits >= 0x7f800000 ? 0x7fc00000u : 0u;
    __builtin_memcpy(scale, &scale_bits, 4);
    *bias = half_bias[0] = half_bias[1] = 0;
    _mm512_store_si512(q, _mm512_setzero_si512());
    return;
  }
  *scale = amax / 127.0f;
  const __m512 inverse = _mm512_set1_ps(127.0f / amax);
  const __m512i limit = _mm512_set1_epi32(127);
  __m512i sum_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int i = 0; i < 4; ++i) {
    __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
    code = _mm512_max_epi32(_mm512_min_epi32(code, limit), _mm512_set1_epi32(-127));
    sum_i32x16[i / 2] = _mm512_add_epi32(sum_i32x16[i / 2], code);
    _mm_store_si128(reinterpret_cast<__m128i*>(q + 16 * i), _mm512_cvtepi32_epi8(code));
  }
  for (int i = 0; i < 2; ++i) half_bias[i] = -128 * _mm512_reduce_add_epi32(sum_i32x16[i]);
  *bias = half_bias[0] + half_bias[1];
}

}  // namespace
}  // namespace musespark

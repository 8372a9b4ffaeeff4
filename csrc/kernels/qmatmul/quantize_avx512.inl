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

inline std::int32_t group_amax(const float* x, std::int64_t left) {
  const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
  __m512i amax_i32x16 = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) {
    const __m512 v = _mm512_maskz_loadu_ps(columns_mask(left, i), x + 16 * i);
    amax_i32x16 = _mm512_max_epi32(amax_i32x16, _mm512_and_si512(_mm512_castps_si512(v), no_sign));
  }
  return _mm512_reduce_max_epi32(amax_i32x16);
}

inline void group_codes(const float* x, std::int64_t left, float inverse_scale, std::int8_t* q,
                        std::int32_t* sum) {
  const __m512 inverse = _mm512_set1_ps(inverse_scale);
  const __m512i limit = _mm512_set1_epi32(127);
  __m512i sum_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int i = 0; i < 4; ++i) {
    const __m512 v = _mm512_maskz_loadu_ps(columns_mask(left, i), x + 16 * i);
    __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
    code = _mm512_max_epi32(_mm512_min_epi32(code, limit), _mm512_set1_epi32(-127));
    sum_i32x16[i / 2] = _mm512_add_epi32(sum_i32x16[i / 2], code);
    _mm_store_si128(reinterpret_cast<__m128i*>(q + 16 * i), _mm512_cvtepi32_epi8(code));
  }
  for (int i = 0; i < 2; ++i) sum[i] = _mm512_reduce_add_epi32(sum_i32x16[i]);
}

}  // namespace
}  // namespace musespark

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

inline std::int32_t long_amax(const float* x, std::int64_t n) {
  const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
  __m512i amax_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (std::int64_t i = 0; i < n; i += 32) {
    for (int v = 0; v < 2; ++v) {
      const __m512 part = _mm512_maskz_loadu_ps(columns_mask(n - i, v), x + i + 16 * v);
      amax_i32x16[v] =
          _mm512_max_epi32(amax_i32x16[v], _mm512_and_si512(_mm512_castps_si512(part), no_sign));
    }
  }
  return _mm512_reduce_max_epi32(_mm512_max_epi32(amax_i32x16[0], amax_i32x16[1]));
}

// Packing saturates at 127; the sums of bytes are products with ones.
inline std::int32_t long_codes(const float* x, std::int64_t n, float inverse_scale,
                               std::int8_t* q) {
  const __m512 inverse = _mm512_set1_ps(inverse_scale);
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i ones = _mm512_set1_epi8(1), lowest = _mm512_set1_epi8(-127);
  __m512i sum_i32x16 = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < n; i += kActGroup) {
    __m512i code[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512 part = _mm512_maskz_loadu_ps(columns_mask(n - i, v), x + i + 16 * v);
      code[v] = _mm512_cvtps_epi32(_mm512_mul_ps(part, inverse));
    }
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(code[0], code[1]),
                                       _mm512_packs_epi32(code[2], code[3]));  // by 128-bit lane
    bytes = _mm512_max_epi8(_mm512_permutexvar_epi32(in_order, bytes), lowest);
    sum_i32x16 = _mm512_dpbusd_epi32(sum_i32x16, ones, bytes);
    _mm512_store_si512(q + i, bytes);
  }
  return _mm512_reduce_add_epi32(sum_i32x16);
}

}  // namespace
}  // namespace musespark

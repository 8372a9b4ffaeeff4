// quantize_rows for 256-bit vectors: one group of 64 columns = eight vectors.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/quantize.inl"

namespace musespark {
namespace {

inline std::int32_t max_lane(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtsi128_si32(m);
}

inline std::int32_t sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

inline std::int32_t group_amax(const float* x, std::int64_t left) {
  float copy[kActGroup];
  x = whole_group(x, left, copy);
  const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
  __m256i amax_i32x8 = _mm256_setzero_si256();
  for (int i = 0; i < 8; ++i) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
    amax_i32x8 = _mm256_max_epi32(amax_i32x8, _mm256_and_si256(bits, no_sign));
  }
  return max_lane(amax_i32x8);
}

inline void group_codes(const float* x, std::int64_t left, float inverse_scale, std::int8_t* q,
                        std::int32_t* sum) {
  float copy[kActGroup];
  x = whole_group(x, left, copy);
  const __m256 inverse = _mm256_set1_ps(inverse_scale);
  const __m256i high = _mm256_set1_epi32(127), low = _mm256_set1_epi32(-127);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the packs
  for (int i = 0; i < 2; ++i) {
    __m256i sum_i32x8 = _mm256_setzero_si256();
    __m256i code[4];
    for (int j = 0; j < 4; ++j) {
      const __m256 t = _mm256_mul_ps(_mm256_loadu_ps(x + 32 * i + 8 * j), inverse);
      code[j] = _mm256_max_epi32(_mm256_min_epi32(_mm256_cvtps_epi32(t), high), low);
      sum_i32x8 = _mm256_add_epi32(sum_i32x8, code[j]);
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                             _mm256_packs_epi32(code[2], code[3]));
    _mm256_store_si256(reinterpret_cast<__m256i*>(q + 32 * i),
                       _mm256_permutevar8x32_epi32(bytes, in_order));
    sum[i] = sum_lanes(sum_i32x8);
  }
}

inline std::int32_t long_amax(const float* x, std::int64_t n) { return amax_by_groups(x, n); }
inline std::int32_t long_codes(const float* x, std::int64_t n, float inverse, std::int8_t* q) {
  return codes_by_groups(x, n, inverse, q);
}

}  // namespace
}  // namespace musespark

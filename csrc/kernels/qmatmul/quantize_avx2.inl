// quantize_rows for 256-bit vectors: one group of 64 columns = eight vectors.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"

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

// x: 64 floats.
inline void quantize_64(const float* x, std::int8_t* q, float* scale, std::int32_t* bias,
                        std::int32_t* half_bias) {
  const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
  __m256i amax_i32x8 = _mm256_setzero_si256();
  for (int i = 0; i < 8; ++i) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
    amax_i32x8 = _mm256_max_epi32(amax_i32x8, _mm256_and_si256(bits, no_sign));
  }
  const std::int32_t amax_bits = max_lane(amax_i32x8);
  float amax;
  __builtin_memcpy(&amax, &amax_bits, 4);
  if (amax_bits >= 0x7f800000 || amax < 1e-30f) {
    const std::uint32_t scale_bits = amax_bits >= 0x7f800000 ? 0x7fc00000u : 0u;
    __builtin_memcpy(scale, &scale_bits, 4);
    *bias = half_bias[0] = half_bias[1] = 0;
    __builtin_memset(q, 0, kActGroup);
    return;
  }
  *scale = amax / 127.0f;
  const __m256 inverse = _mm256_set1_ps(127.0f / amax);
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
    half_bias[i] = -128 * sum_lanes(sum_i32x8);
  }
  *bias = half_bias[0] + half_bias[1];
}

}  // namespace
}  // namespace musespark

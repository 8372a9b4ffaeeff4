// Vectors of rows for packing: kLanes of the 16 rows of a row block, as wide as the level has them.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "formats/pack_steps.h"
#include "formats/weights.h"

namespace musespark {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint8_t U8x16 __attribute__((vector_size(16)));
typedef std::uint16_t U16x8 __attribute__((vector_size(16)));

#define MUSESPARK_INLINE [[gnu::always_inline]] inline

#if defined(__clang__)
#define MUSESPARK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MUSESPARK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a){__VA_ARGS__})
#endif

MUSESPARK_INLINE F32 load(const float* p) {
  F32 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// Bytes to numbers and back; GCC takes its own conversion of byte vectors apart, lane by lane.
MUSESPARK_INLINE F32 load_bytes(const std::int8_t* p) {
#if defined(__AVX512F__)
  return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return F32{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
#endif
}

MUSESPARK_INLINE void store_bytes(std::uint8_t* p, F32 integers) {
  const I32 v = __builtin_convertvector(integers, I32);
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
  const __m256i low = _mm256_set1_epi32(0x0c080400);
  const __m256i fours = _mm256_shuffle_epi8((__m256i)v, low);
  _mm_storel_epi64((__m128i*)p, _mm_unpacklo_epi32(_mm256_castsi256_si128(fours),
                                                   _mm256_extracti128_si256(fours, 1)));
#else
  for (int r = 0; r < kLanes; ++r) p[r] = static_cast<std::uint8_t>(v[r]);
#endif
}

MUSESPARK_INLINE U8x16 load_row_bytes(const void* p) {
  U8x16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

MUSESPARK_INLINE void store(float* p, F32 v) { __builtin_memcpy(p, &v, sizeof v); }

MUSESPARK_INLINE F32 splat(float x) { return F32{} + x; }

MUSESPARK_INLINE F32 magnitude(F32 v) { return (F32)((I32)v & 0x7fffffff); }

// a > b ? a : b and a < b ? a : b, which GCC makes two instructions of.
MUSESPARK_INLINE F32 larger(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

MUSESPARK_INLINE F32 smaller(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// Nearest integer, ties to even, for |v| < 2^22.
MUSESPARK_INLINE F32 rounded(F32 v) { return (v + 12582912.0f) - 12582912.0f; }

// What is not a number stays so.
MUSESPARK_INLINE F32 clamped(F32 v, float low, float high) {
  return smaller(splat(high), larger(splat(low), v));
}

// count + 1 where a > b, else count.
MUSESPARK_INLINE I32 add_if_greater(I32 count, F32 a, F32 b) {
#if defined(__AVX512F__)
  const __mmask16 greater = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
  return (I32)_mm512_mask_sub_epi32((__m512i)count, greater, (__m512i)count, _mm512_set1_epi32(-1));
#else
  return count - (I32)(a > b);
#endif
}

// table[index & 15] of each lane.
MUSESPARK_INLINE F32 look_up(const float (&table)[16], I32 index) {
#if defined(__AVX512F__)
  return (F32)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)index);
  return (F32)_mm256_blendv_ps(low, high, (__m256)(index << 28));
#else
  return F32{table[index[0] & 15], table[index[1] & 15], table[index[2] & 15],
             table[index[3] & 15]};
#endif
}

// The lower and the upper halves of a and b, byte by byte in turn.
MUSESPARK_INLINE U8x16 zip_low(U8x16 a, U8x16 b) {
  return MUSESPARK_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

MUSESPARK_INLINE U8x16 zip_high(U8x16 a, U8x16 b) {
  return MUSESPARK_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

MUSESPARK_INLINE U8x16 zip_low_pairs(U8x16 a, U8x16 b) {
  return (U8x16)MUSESPARK_SHUFFLE((U16x8)a, (U16x8)b, 0, 8, 1, 9, 2, 10, 3, 11);
}

MUSESPARK_INLINE U8x16 zip_high_pairs(U8x16 a, U8x16 b) {
  return (U8x16)MUSESPARK_SHUFFLE((U16x8)a, (U16x8)b, 4, 12, 5, 13, 6, 14, 7, 15);
}

}  // namespace
}  // namespace musespark

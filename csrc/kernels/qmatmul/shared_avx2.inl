// Small things the AVX2 and AVX-VNNI matmul files share.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// The same pointer, of unknown origin: the compiler computes no address of it from another.
template <class T>
[[gnu::always_inline]] inline const T* opaque(const T* p) {
  __asm__("" : "+r"(p));
  return p;
}

inline __m256 block_scales(const std::uint16_t* block) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
}

// Of rows 0..7 and 8..15.
inline void both_scales(const std::uint16_t* block, __m256 (&scales)[2]) {
  scales[0] = block_scales(block);
  scales[1] = block_scales(block + 8);
}

// sum += f * scale, 8 floats in memory.
inline void add_scaled(float* sum, __m256 f, __m256 scale) {
  _mm256_store_ps(sum, _mm256_fmadd_ps(f, scale, _mm256_load_ps(sum)));
}

// Stores rows 8 * half .. of row block `index`, those that are rows of the matrix.
inline void store_rows(const PackedMatrix& w, std::int64_t index, int half, float* out, __m256 v) {
  const std::int64_t left = w.rows - index * kRowBlock - 8 * half;
  if (left >= 8) {
    _mm256_storeu_ps(out + 8 * half, v);
    return;
  }
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i count = _mm256_set1_epi32(left > 0 ? static_cast<int>(left) : 0);
  if (left > 0) _mm256_maskstore_ps(out + 8 * half, _mm256_cmpgt_epi32(count, lane), v);
}

}  // namespace
}  // namespace musespark

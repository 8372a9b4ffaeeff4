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

// From the codes of panel `i` of `count` row blocks side by side, `panel_cols` columns from k0 on,
// to those of the panel that is unpacked next.
template <WeightFormat kFormat>
inline std::int64_t panel_ahead(const MatmulArgs& a, std::int64_t k0, std::int64_t panel_cols,
                                std::int64_t i, std::int64_t count) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const std::int64_t to_next = a.w.row_block_bytes;
  if (i + 1 < count) return to_next;
  if (k0 + panel_cols < a.xq->cols) return panel_cols / 64 * kStride - (count - 1) * to_next;
  return to_next - k0 / 64 * kStride;
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

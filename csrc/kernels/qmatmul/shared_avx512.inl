// Small things the AVX-512 and AMX matmul files share.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "formats/weights.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/stream.inl"

namespace musespark {
namespace {

inline __m512 block_scales(const std::uint16_t* block) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
}

// Lanes of row block `index` that are rows of the matrix.
inline __mmask16 row_mask(const PackedMatrix& w, std::int64_t index) {
  const std::int64_t left = w.rows - index * kRowBlock;
  return left >= kRowBlock ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

// Row block `index` of the rows that there are, times its scales, to `out`.
template <int kRows>
inline void store_block(const MatmulArgs& a, std::int64_t index, const float* row_scales,
                        const __m512 (&total)[kRows]) {
  const __m512 row = _mm512_loadu_ps(row_scales);
  for (int m = 0; m < kRows && m < a.m; ++m) {
    _mm512_mask_storeu_ps(a.out + m * a.ldo + index * kRowBlock, row_mask(a.w, index),
                          _mm512_mul_ps(total[m], row));
  }
}

}  // namespace
}  // namespace musespark

// Small things the AVX-512 and AMX matmul files share.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "formats/weights.h"

namespace musespark {
namespace {

inline std::int32_t load_i32(const void* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

inline __m512 block_scales(const std::uint16_t* block) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
}

// Lanes of row block `index` that are rows of the matrix.
inline __mmask16 row_mask(const PackedMatrix& w, std::int64_t index) {
  const std::int64_t left = w.rows - index * kRowBlock;
  return left >= kRowBlock ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

}  // namespace
}  // namespace musespark

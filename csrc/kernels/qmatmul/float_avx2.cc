// f32 and bf16 weights with AVX2: one fma chain per output, columns ascending.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

constexpr int kTileRows = 4;  // activation rows per register tile, against 16 weight rows

struct Tile {
  const std::uint8_t* w;
  const float* x;
  std::int64_t ldx;
  float* out;
  std::int64_t ldo;
  std::int64_t cols;
  std::int64_t rows;  // weight rows that exist, at most 16
  const float* bias;  // of them; null: none
};

template <int kRows>
inline void step(const Tile& t, __m256 w0, __m256 w1, std::int64_t k, __m256 (&acc)[kRows][2]) {
#pragma GCC unroll 4
  for (int c = 0; c < kRows; ++c) {
    const __m256 x = _mm256_set1_ps(t.x[c * t.ldx + k]);
    acc[c][0] = _mm256_fmadd_ps(x, w0, acc[c][0]);
    acc[c][1] = _mm256_fmadd_ps(x, w1, acc[c][1]);
  }
}

inline __m256 with_bias(const Tile& t, int half, __m256 v) {
  float lane[8] = {};
  for (std::int64_t i = 0; i < 8 && 8 * half + i < t.rows; ++i) lane[i] = t.bias[8 * half + i];
  const __m256 sum = _mm256_add_ps(v, _mm256_loadu_ps(lane));
  const __m256 is_nan = _mm256_cmp_ps(sum, sum, _CMP_UNORD_Q);
  return _mm256_blendv_ps(sum, _mm256_set1_ps(__builtin_nanf("")), is_nan);
}

inline void store_half(const Tile& t, int half, float* out, __m256 v) {
  if (t.bias) v = with_bias(t, half, v);
  const std::int64_t left = t.rows - 8 * half;
  if (left >= 8) {
    _mm256_storeu_ps(out + 8 * half, v);
  } else if (left > 0) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i count = _mm256_set1_epi32(static_cast<int>(left));
    _mm256_maskstore_ps(out + 8 * half, _mm256_cmpgt_epi32(count, lane), v);
  }
}

template <WeightFormat kFormat, int kRows>
inline void tile(const Tile& t) {
  __m256 acc[kRows][2];
  for (int c = 0; c < kRows; ++c) acc[c][0] = acc[c][1] = _mm256_setzero_ps();
  if constexpr (kFormat == WeightFormat::f32) {
    for (std::int64_t k = 0; k < t.cols; ++k) {
      const float* w = reinterpret_cast<const float*>(t.w + k * 64);
      step<kRows>(t, _mm256_load_ps(w), _mm256_load_ps(w + 8), k, acc);
    }
  } else {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    for (std::int64_t k = 0; k < t.cols; k += 2) {  // a lane holds columns k (low half) and k + 1
      const __m256i* pair = reinterpret_cast<const __m256i*>(t.w + k * 32);
      const __m256i p0 = _mm256_load_si256(pair), p1 = _mm256_load_si256(pair + 1);
      step<kRows>(t, _mm256_castsi256_ps(_mm256_slli_epi32(p0, 16)),
                  _mm256_castsi256_ps(_mm256_slli_epi32(p1, 16)), k, acc);
      if (k + 1 == t.cols) break;
      step<kRows>(t, _mm256_castsi256_ps(_mm256_and_si256(p0, high)),
                  _mm256_castsi256_ps(_mm256_and_si256(p1, high)), k + 1, acc);
    }
  }
  for (int c = 0; c < kRows; ++c) {
    store_half(t, 0, t.out + c * t.ldo, acc[c][0]);
    store_half(t, 1, t.out + c * t.ldo, acc[c][1]);
  }
}

template <WeightFormat kFormat>
void matmul_float(const MatmulArgs& a) {
  for (std::int64_t b = a.block_begin; b < a.block_end; ++b) {
    const std::int64_t left = a.w.rows - b * kRowBlock;
    Tile t{a.w.data + b * a.w.row_block_bytes,
           a.x,
           a.ldx,
           a.out + b * kRowBlock,
           a.ldo,
           a.w.cols,
           left < kRowBlock ? left : kRowBlock,
           a.bias ? a.bias + b * kRowBlock : nullptr};
    std::int64_t m = a.m;
    for (; m >= kTileRows; m -= kTileRows) {
      tile<kFormat, kTileRows>(t);
      t.x += kTileRows * t.ldx;
      t.out += kTileRows * t.ldo;
    }
    if (m == 3) tile<kFormat, 3>(t);
    if (m == 2) tile<kFormat, 2>(t);
    if (m == 1) tile<kFormat, 1>(t);
  }
}

}  // namespace

void matmul_float_avx2(const MatmulArgs* args) {
  if (args->w.format == WeightFormat::f32) return matmul_float<WeightFormat::f32>(*args);
  matmul_float<WeightFormat::bf16>(*args);
}

}  // namespace musespark

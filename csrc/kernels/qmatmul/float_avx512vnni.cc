// f32 and bf16 weights with AVX-512: one fma chain per output, columns ascending.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"

namespace musespark {
namespace {

constexpr int kMaxBlocks = 4;
constexpr int kTileRows = 8;  // activation rows per register tile
constexpr int kFlatRows = 6;  // of one of four row blocks
// With more rows than this, columns are taken so many at a time: three row blocks of them (36 KiB)
// and a tile's activations stay in the first-level cache for all rows. Sums wait in `out`, exact.
constexpr std::int64_t kFewRows = 32;
constexpr std::int64_t kChunk = 192;

struct Tile {
  const std::uint8_t* w[kMaxBlocks];
  const float* x;
  std::int64_t ldx;
  float* out;
  std::int64_t ldo;
  std::int64_t begin, end;  // columns; those before `begin` are summed up in out
  __mmask16 mask[kMaxBlocks];
  const float* bias;  // of the first weight row; null: none, or not the last columns
};

template <int kBlocks, int kRows>
inline void step(const Tile& t, const __m512 (&w)[kBlocks], std::int64_t k,
                 __m512 (&acc)[kBlocks][kRows]) {
#pragma GCC unroll 8
  for (int c = 0; c < kRows; ++c) {
    const __m512 x = _mm512_set1_ps(t.x[c * t.ldx + k]);
    for (int b = 0; b < kBlocks; ++b) acc[b][c] = _mm512_fmadd_ps(x, w[b], acc[b][c]);
  }
}

template <WeightFormat kFormat, int kBlocks, int kRows>
inline void tile(const Tile& t) {
  __m512 acc[kBlocks][kRows];
  for (int b = 0; b < kBlocks; ++b) {
    for (int c = 0; c < kRows; ++c) {
      acc[b][c] = t.begin == 0
                      ? _mm512_setzero_ps()
                      : _mm512_maskz_loadu_ps(t.mask[b], t.out + c * t.ldo + b * kRowBlock);
    }
  }
  __m512 w[kBlocks];
  if constexpr (kFormat == WeightFormat::f32) {
    for (std::int64_t k = t.begin; k < t.end; ++k) {
      for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_load_ps(t.w[b] + k * 64);
      step<kBlocks, kRows>(t, w, k, acc);
    }
  } else {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    // A lane holds columns k (low half) and k + 1.
    for (std::int64_t k = t.begin; k < t.end; k += 2) {
      __m512i pair[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        pair[b] = _mm512_load_si512(t.w[b] + k * 32);
        w[b] = _mm512_castsi512_ps(_mm512_slli_epi32(pair[b], 16));
      }
      step<kBlocks, kRows>(t, w, k, acc);
      if (k + 1 == t.end) break;
      for (int b = 0; b < kBlocks; ++b) {
        w[b] = _mm512_castsi512_ps(_mm512_and_si512(pair[b], high));
      }
      step<kBlocks, kRows>(t, w, k + 1, acc);
    }
  }
  if (t.bias) {
    const __m512 nan = _mm512_set1_ps(__builtin_nanf(""));
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 bias = _mm512_maskz_loadu_ps(t.mask[b], t.bias + b * kRowBlock);
      for (int c = 0; c < kRows; ++c) {
        const __m512 sum = _mm512_add_ps(acc[b][c], bias);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
        acc[b][c] = _mm512_mask_mov_ps(sum, is_nan, nan);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int c = 0; c < kRows; ++c) {
      _mm512_mask_storeu_ps(t.out + c * t.ldo + b * kRowBlock, t.mask[b], acc[b][c]);
    }
  }
}

// Weights that come next, for the second-level cache: `bytes` of each row block, a share of them
// with each tile. Without it the first tile of every chunk waits for the third level.
struct Next {
  const std::uint8_t* w;
  std::int64_t row_block_bytes, bytes, share;
  std::int64_t at = 0;

  void fetch(int blocks) {
    const std::int64_t end = at + share < bytes ? at + share : bytes;
    for (; at < end; at += 64) {
      for (int b = 0; b < blocks; ++b) {
        _mm_prefetch(reinterpret_cast<const char*>(w + b * row_block_bytes + at), _MM_HINT_T1);
      }
    }
  }
};

// All rows over the columns of `t`.
template <WeightFormat kFormat, int kBlocks>
void all_rows(Tile t, std::int64_t m, Next next) {
  constexpr int kRows = kBlocks == kMaxBlocks ? kFlatRows : kTileRows;
  for (; m >= kRows; m -= kRows) {
    next.fetch(kBlocks);
    tile<kFormat, kBlocks, kRows>(t);
    t.x += kRows * t.ldx;
    t.out += kRows * t.ldo;
  }
  const std::int64_t four = m & 4, two = m & 2, one = m & 1;
  if (four) tile<kFormat, kBlocks, 4>(t);
  t.x += four * t.ldx;
  t.out += four * t.ldo;
  if (two) tile<kFormat, kBlocks, 2>(t);
  t.x += two * t.ldx;
  t.out += two * t.ldo;
  if (one) tile<kFormat, kBlocks, 1>(t);
}

template <WeightFormat kFormat, int kBlocks>
void row_blocks(const MatmulArgs& a, std::int64_t first_block) {
  Tile t{{}, a.x, a.ldx, a.out + first_block * kRowBlock, a.ldo, 0, 0, {}, nullptr};
  for (int b = 0; b < kBlocks; ++b) {
    t.w[b] = a.w.data + (first_block + b) * a.w.row_block_bytes;
    t.mask[b] = row_mask(a.w, first_block + b);
  }
  const std::int64_t chunk = a.m > kFewRows ? kChunk : a.w.cols;
  constexpr std::int64_t kColumnBytes = kFormat == WeightFormat::f32 ? 64 : 32;
  for (; t.begin < a.w.cols; t.begin = t.end) {
    t.end = t.begin + chunk < a.w.cols ? t.begin + chunk : a.w.cols;
    if (t.end == a.w.cols && a.bias) t.bias = a.bias + first_block * kRowBlock;
    Next next{t.w[0] + t.end * kColumnBytes, a.w.row_block_bytes, 0, 0};
    if (a.m > kFewRows) {
      // After the last columns the next row blocks begin: as many as these are, or none.
      if (t.end == a.w.cols) next.w = t.w[0] + kBlocks * a.w.row_block_bytes;
      const std::int64_t left = t.end < a.w.cols ? a.w.cols - t.end : a.w.cols;
      const bool more = t.end < a.w.cols || first_block + 2 * kBlocks <= a.block_end;
      next.bytes = more ? (left < chunk ? left : chunk) * kColumnBytes : 0;
      next.share = (next.bytes * kTileRows / a.m + 63) / 64 * 64;
    }
    all_rows<kFormat, kBlocks>(t, a.m, next);
  }
}

template <WeightFormat kFormat>
void matmul_float(const MatmulArgs& a) {
  std::int64_t b = a.block_begin;
  // One row is bound by memory: more pages at once (see avx512vnni.cc).
  for (; a.m == 1 && b + 4 <= a.block_end; b += 4) row_blocks<kFormat, 4>(a, b);
  // Three blocks a tile, four where one would be left alone.
  for (; a.m > kFewRows && b + 3 <= a.block_end && b + 4 != a.block_end; b += 3) {
    row_blocks<kFormat, 3>(a, b);
  }
  for (; a.m > kFewRows && b + 4 <= a.block_end; b += 4) row_blocks<kFormat, 4>(a, b);
  for (; b + 2 <= a.block_end; b += 2) row_blocks<kFormat, 2>(a, b);
  if (b < a.block_end) row_blocks<kFormat, 1>(a, b);
}

}  // namespace

void matmul_float_avx512vnni(const MatmulArgs* args) {
  if (args->w.format == WeightFormat::f32) return matmul_float<WeightFormat::f32>(*args);
  matmul_float<WeightFormat::bf16>(*args);
}

}  // namespace musespark

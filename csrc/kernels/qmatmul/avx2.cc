// Quantized matmul with AVX2. Bit-identical to scalar.cc.
//
// Weights become int16 words and meet int16 activations in vpmaddwd: exact, and unlike vpmaddubsw
// it cannot saturate.
//
//   M <= kFewRows   weights stream from memory to registers: few_avx2.inl.
//   more            a panel of 16 rows x kPanelCols columns rests in L1 and a register tile of 16
//                   weight rows x up to 4 activation rows runs over it. Activations are widened 16
//                   rows at a time.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/few_avx2.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize_avx2.inl"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 512;  // 16 rows x 512 words = 16 KiB of L1
constexpr std::int64_t kPassRows = 16;    // activation rows widened at a time
constexpr int kTileRows = 4;
constexpr std::int64_t kFewRows = 8;

// Activation groups that share a block scale; not of the formats with two scales per group.
constexpr std::int64_t groups_per_block(WeightFormat format) {
  return is_g32(format) ? 1 : block_cols(format) / kActGroup;
}

// int8 activations as int16 pairs, in the order of widen_32.
void widen_row(const std::int8_t* q, std::int64_t kp, std::int32_t* pairs) {
  for (std::int64_t k = 0; k < kp; k += 32) widen_32(q + k, pairs + k / 2);
}

struct Pass {
  const MatmulArgs* args;
  const std::int32_t* pairs;  // [rows][Kp / 2]
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  const __m256i* words;       // panel: in the order of `pairs`, (rows 0..7, rows 8..15) of each
  float* sums;                // [rows][16]
  std::int64_t k0, cols;      // columns of the panel
};

inline __m256i madd(__m256i acc, __m256i words, const std::int32_t* pair) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi32(*pair)));
}

// Exact sums over kCols columns of rows 0..7 and 8..15, activation rows `stride` pairs apart.
template <int kCols, int kRows>
inline void tile_dot(const __m256i* words, const std::int32_t* pairs, std::int64_t stride,
                     __m256i (&acc)[kRows][2]) {
  for (int c = 0; c < kRows; ++c) acc[c][0] = acc[c][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < kCols / 2; ++i) {
    const __m256i w0 = words[2 * i], w1 = words[2 * i + 1];
#pragma GCC unroll 4
    for (int c = 0; c < kRows; ++c) {
      acc[c][0] = madd(acc[c][0], w0, pairs + c * stride + i);
      acc[c][1] = madd(acc[c][1], w1, pairs + c * stride + i);
    }
  }
}

// kRows activation rows over the panel, for formats with a scale per 32 columns.
template <int kRows>
inline void tile_g32(const Pass& p, const RowBlock& rb, std::int64_t m) {
  const std::int64_t kp = p.args->xq->cols, all_groups = kp / kActGroup;
  const float* scale = p.args->xq->scale + (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::uint16_t* block = rb.block + p.k0 / kBlockG32 * kRowBlock;
  const std::int32_t* pairs = p.pairs + m * (kp / 2) + p.k0 / 2;
  float* sums = p.sums + m * kRowBlock;
  for (std::int64_t g = 0; g < p.cols / kActGroup; ++g, block += 2 * kRowBlock) {
    __m256i acc[kRows][2];
    __m256 f[kRows][2];  // rests in memory during the second half
    tile_dot<32, kRows>(p.words + g * 64, pairs + g * 32, kp / 2, acc);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 s = block_scales(block + 8 * h);
#pragma GCC unroll 4
      for (int c = 0; c < kRows; ++c) f[c][h] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[c][h]), s);
    }
    tile_dot<32, kRows>(p.words + g * 64 + 32, pairs + g * 32 + 16, kp / 2, acc);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 s = block_scales(block + kRowBlock + 8 * h);
#pragma GCC unroll 4
      for (int c = 0; c < kRows; ++c) {
        const __m256 t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[c][h]), s, f[c][h]);
        float* sum = sums + c * kRowBlock + 8 * h;
        const __m256 x = _mm256_set1_ps(scale[c * all_groups + g]);
        _mm256_store_ps(sum, _mm256_fmadd_ps(t, x, _mm256_load_ps(sum)));
      }
    }
  }
}

// kRows activation rows (m of the pass on) over the panel of row block rb.
template <WeightFormat kFormat, int kRows>
inline void tile(const Pass& p, const RowBlock& rb, std::int64_t m) {
  if constexpr (is_g32(kFormat)) return tile_g32<kRows>(p, rb, m);
  constexpr std::int64_t kGroups = groups_per_block(kFormat);
  const std::int64_t kp = p.args->xq->cols, all_groups = kp / kActGroup;
  const float* scale = p.args->xq->scale + (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::int64_t groups = p.cols / kActGroup;
  float* sums = p.sums + m * kRowBlock;
  __m256 f[kRows][2];  // rests in memory during a group
  for (int c = 0; c < kRows; ++c) f[c][0] = f[c][1] = _mm256_setzero_ps();
  for (std::int64_t g = 0; g < groups; ++g) {
    if constexpr (kGroups > 1) rest_in_memory(f);
    const std::int32_t* pairs = p.pairs + m * (kp / 2) + p.k0 / 2 + g * 32;
    __m256i acc[kRows][2];
    tile_dot<64, kRows>(p.words + g * 64, pairs, kp / 2, acc);
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    for (int c = 0; c < kRows; ++c) {
      const __m256 s = _mm256_set1_ps(scale[c * all_groups + g]);
      for (int h = 0; h < 2; ++h) {
        f[c][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[c][h]), s,
                                  kGroups == 1 ? _mm256_setzero_ps() : f[c][h]);
        if (!block_ends) continue;
        const std::int64_t block = p.k0 / block_cols(kFormat) + g / kGroups;
        float* sum = sums + c * kRowBlock + 8 * h;
        _mm256_store_ps(sum,
                        _mm256_fmadd_ps(f[c][h], block_scales(rb.block + block * kRowBlock + 8 * h),
                                        _mm256_load_ps(sum)));
        f[c][h] = _mm256_setzero_ps();
      }
    }
  }
}

// Unpacks the panel; fetches the codes of the next one, and a line of the next row block's scales.
template <WeightFormat kFormat>
void unpack_panel(const RowBlock& rb, const Pass& p, __m256i* words) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const __m256i levels = code_levels<kFormat>(p.args->w.format);
  const std::int64_t kp = p.args->xq->cols, to_next = p.args->w.row_block_bytes;
  const std::int64_t ahead =
      p.k0 + p.cols < kp ? kPanelCols / 64 * kStride : to_next - p.k0 / 64 * kStride;
  for (std::int64_t k = p.k0; k < p.k0 + p.cols; k += 64) {
    prefetch(reinterpret_cast<const std::uint8_t*>(rb.row) + to_next + k);
    const std::uint8_t* codes = rb.codes + k / 64 * kStride;
    const std::int8_t* sub = rb.sub + k / kSubGroup * kRowBlock;
    __m256i* to = words + (k - p.k0);  // 64 vectors per 64 columns
#pragma GCC unroll 1
    for (int half = 0; half < 2; ++half) {
      const __m256i sub0 = sub_scales<kFormat>(sub + 8 * half);
      const __m256i sub1 = sub_scales<kFormat>(sub + kRowBlock + 8 * half);
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        prefetch_quarter<kFormat>(codes, ahead, 2 * half, v);
        prefetch_quarter<kFormat>(codes, ahead, 2 * half + 1, v);
        const Pair first = code_pair<kFormat, 0>(codes + 32 * half, v, levels, sub0);
        const Pair second = code_pair<kFormat, 1>(codes + 32 * half, v, levels, sub1);
        to[2 * v + half] = first.even;
        to[2 * (v + 8) + half] = first.odd;
        to[2 * (v + 16) + half] = second.even;
        to[2 * (v + 24) + half] = second.odd;
      }
    }
  }
}

template <WeightFormat kFormat>
void pass_block(Pass p, std::int64_t block, __m256i* words) {
  const RowBlock rb = row_block(p.args->w, block);
  const std::int64_t kp = p.args->xq->cols;
  p.words = words;
  for (std::int64_t i = 0; i < p.rows * kRowBlock; ++i) p.sums[i] = 0.0f;
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    unpack_panel<kFormat>(rb, p, words);
    std::int64_t m = 0;
    for (; m + kTileRows <= p.rows; m += kTileRows) tile<kFormat, kTileRows>(p, rb, m);
    switch (p.rows - m) {
      case 3:
        tile<kFormat, 3>(p, rb, m);
        break;
      case 2:
        tile<kFormat, 2>(p, rb, m);
        break;
      case 1:
        tile<kFormat, 1>(p, rb, m);
        break;
      default:
        break;
    }
  }
  for (std::int64_t m = 0; m < p.rows; ++m) {
    for (int h = 0; h < 2; ++h) {
      const __m256 total = _mm256_load_ps(p.sums + m * kRowBlock + 8 * h);
      store_rows(p.args->w, block, h, p.args->out + (p.m0 + m) * p.args->ldo + block * kRowBlock,
                 _mm256_mul_ps(total, _mm256_loadu_ps(rb.row + 8 * h)));
    }
  }
}

// M = 1 .. kFewRows, made up to one of a few sizes.
template <WeightFormat kFormat>
void few_rows(const MatmulArgs& a) {
  if (a.m == 1) return few<WordRows<kFormat, 1>>(a);
  if (a.m == 2) return few<WordRows<kFormat, 2>>(a);
  if (a.m == 3) return few<WordRows<kFormat, 3>>(a);
  if (a.m == 4) return few<WordRows<kFormat, 4>>(a);
  if (a.m <= 6) return few<WordRows<kFormat, 6>>(a);
  return few<WordRows<kFormat, 8>>(a);
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m <= kFewRows) return few_rows<kFormat>(a);
  const std::int64_t kp = a.xq->cols;
  std::int32_t* pairs = static_cast<std::int32_t*>(a.scratch);
  __m256i* words = reinterpret_cast<__m256i*>(pairs + kPassRows * kp / 2);
  Pass p{};
  p.args = &a;
  p.pairs = pairs;
  p.sums = reinterpret_cast<float*>(words + kPanelCols);
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (std::int64_t m = 0; m < p.rows; ++m) {
      widen_row(a.xq->q + (p.m0 + m) * a.xq->stride, kp, pairs + m * (kp / 2));
    }
    for (std::int64_t b = a.block_begin; b < a.block_end; ++b) pass_block<kFormat>(p, b, words);
  }
}

}  // namespace

void quantize_rows_avx2(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                        const QuantizedRows* out) {
  const std::int64_t groups = out->cols / kActGroup;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const float* from = x + i * ldx + g * kActGroup;
      const std::int64_t left = k - g * kActGroup;
      float group[kActGroup];
      if (left < kActGroup) {
        for (std::int64_t j = 0; j < kActGroup; ++j) group[j] = j < left ? from[j] : 0.0f;
        from = group;
      }
      quantize_64(from, out->q + i * out->stride + g * kActGroup, out->scale + i * groups + g,
                  out->bias + i * groups + g, out->half_bias + 2 * (i * groups + g));
    }
  }
}

void matmul_avx2(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_avx2(args);
}

}  // namespace musespark

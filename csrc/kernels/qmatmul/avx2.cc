// Quantized matmul with AVX2. Bit-identical to scalar.cc.
//
// Weights become int16 words and meet int16 activations in vpmaddwd: exact, and unlike vpmaddubsw
// it cannot saturate. M = 1 uses the words as they are unpacked; for more rows a panel of 16 rows x
// kPanelCols columns rests in L1 and a register tile of 16 weight rows x up to 4 activation rows
// runs over it. Activations are widened 16 rows at a time.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize_avx2.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 512;  // 16 rows x 512 words = 16 KiB of L1
constexpr std::int64_t kPassRows = 16;    // activation rows widened at a time
constexpr int kTileRows = 4;

// Activation groups that share a block scale; not of the formats with two scales per group.
constexpr std::int64_t groups_per_block(WeightFormat format) {
  return is_g32(format) ? 1 : block_cols(format) / kActGroup;
}

inline __m256 block_scales(const std::uint16_t* block) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
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

// int8 activations as int16 pairs: per 32 columns 8 dwords (k0, k2) of each quad, 8 dwords (k1,
// k3).
void widen_row(const std::int8_t* q, std::int64_t kp, std::int32_t* pairs) {
  for (std::int64_t k = 0; k < kp; k += 64) {
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = load256(q + k + 32 * i);
      __m256i* to = reinterpret_cast<__m256i*>(pairs + k / 2) + 2 * i;
      _mm256_store_si256(to, even_words(bytes));
      _mm256_store_si256(to + 1, odd_words(bytes));
    }
  }
}

inline __m256i madd(__m256i acc, __m256i words, const std::int32_t* pair) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi32(*pair)));
}

// ---- M = 1 ------------------------------------------------------------------------------------

struct Halves {  // exact sums over the first and the last 32 of 64 columns
  __m256i low, high;
};

// Of rows 8 * half ...
template <WeightFormat kFormat>
inline Halves dot64(const std::uint8_t* codes, const std::int8_t* sub, __m256i levels, int half,
                    const std::int32_t* pairs) {
  Halves acc = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  each_words<kFormat>(codes, sub, levels, half, [&](int v, const Words& w) {
    acc.low = madd(acc.low, w.low_even, pairs + v);
    acc.high = madd(acc.high, w.high_even, pairs + 16 + v);
    acc.low = madd(acc.low, w.low_odd, pairs + 8 + v);
    acc.high = madd(acc.high, w.high_odd, pairs + 24 + v);
  });
  return acc;
}

// total += (both sums times their block scales) * activation scale; `block` of the group's first.
inline __m256 add_g32(Halves sum, const std::uint16_t* block, __m256 scale, __m256 total) {
  __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(sum.low), block_scales(block));
  t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum.high), block_scales(block + kRowBlock), t);
  return _mm256_fmadd_ps(t, scale, total);
}

// kStreams row blocks side by side, 64 columns of each in turn; see avx512vnni.cc.
template <WeightFormat kFormat, int kStreams>
void matvec_blocks(const MatmulArgs& a, std::int64_t first_block, const std::int32_t* pairs) {
  constexpr std::int64_t kGroups = groups_per_block(kFormat);
  constexpr std::int64_t kStride = code_stride(kFormat);
  const std::int64_t groups = a.xq->cols / kActGroup;
  const std::int64_t to_next = kStreams * a.w.row_block_bytes;
  const __m256i levels = level_bytes(a.w.format);
  RowBlock rb[kStreams];
  __m256 f[kStreams][2], total[kStreams][2];
  for (int i = 0; i < kStreams; ++i) {
    rb[i] = row_block(a.w, first_block + i);
    for (int h = 0; h < 2; ++h) f[i][h] = total[i][h] = _mm256_setzero_ps();
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    const __m256 scale = _mm256_set1_ps(a.xq->scale[g]);
    const std::int64_t ahead = g + 1 < groups ? (g + 1) * kStride : to_next;
#pragma GCC unroll 1
    for (int i = 0; i < kStreams; ++i) {
      const char* fetch = reinterpret_cast<const char*>(rb[i].codes) + ahead;
      for (std::int64_t line = 0; line < kStride; line += 64)
        _mm_prefetch(fetch + line, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(rb[i].row) + to_next + 64 * g, _MM_HINT_T0);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const Halves sum = dot64<kFormat>(rb[i].codes + g * kStride, rb[i].sub + 2 * kRowBlock * g,
                                          levels, h, pairs + 32 * g);
        if constexpr (is_g32(kFormat)) {
          const std::uint16_t* block = rb[i].block + 2 * g * kRowBlock + 8 * h;
          total[i][h] = add_g32(sum, block, scale, total[i][h]);
          continue;
        }
        const __m256i sum_i32x8 = _mm256_add_epi32(sum.low, sum.high);
        f[i][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum_i32x8), scale, f[i][h]);
        if (block_ends) {
          total[i][h] = _mm256_fmadd_ps(
              f[i][h], block_scales(rb[i].block + g / kGroups * kRowBlock + 8 * h), total[i][h]);
          f[i][h] = _mm256_setzero_ps();
        }
      }
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    for (int h = 0; h < 2; ++h) {
      store_rows(a.w, first_block + i, h, a.out + (first_block + i) * kRowBlock,
                 _mm256_mul_ps(total[i][h], _mm256_loadu_ps(rb[i].row + 8 * h)));
    }
  }
}

template <WeightFormat kFormat>
void matvec(const MatmulArgs& a) {
  std::int32_t* pairs = static_cast<std::int32_t*>(a.scratch);
  widen_row(a.xq->q, a.xq->cols, pairs);
  std::int64_t b = a.block_begin;
  for (; b + 4 <= a.block_end; b += 4) matvec_blocks<kFormat, 4>(a, b, pairs);
  for (; b < a.block_end; ++b) matvec_blocks<kFormat, 1>(a, b, pairs);
}

// ---- M >= 2 -----------------------------------------------------------------------------------

struct Pass {
  const MatmulArgs* args;
  const std::int32_t* pairs;  // [rows][Kp / 2]
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  const __m256i* words;       // panel: in the order of `pairs`, (rows 0..7, rows 8..15) of each
  float* sums;                // [rows][16]
  std::int64_t k0, cols;      // columns of the panel
};

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
  __m256 f[kRows][2];
  for (int c = 0; c < kRows; ++c) f[c][0] = f[c][1] = _mm256_setzero_ps();
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int32_t* pairs = p.pairs + m * (kp / 2) + p.k0 / 2 + g * 32;
    __m256i acc[kRows][2];
    tile_dot<64, kRows>(p.words + g * 64, pairs, kp / 2, acc);
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    for (int c = 0; c < kRows; ++c) {
      const __m256 s = _mm256_set1_ps(scale[c * all_groups + g]);
      for (int h = 0; h < 2; ++h) {
        f[c][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[c][h]), s, f[c][h]);
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

template <WeightFormat kFormat>
void unpack_panel(const RowBlock& rb, const Pass& p, __m256i* words) {
  const __m256i levels = level_bytes(p.args->w.format);
  for (std::int64_t k = p.k0; k < p.k0 + p.cols; k += 64) {
    __m256i* to = words + (k - p.k0);  // 64 vectors per 64 columns
    for (int half = 0; half < 2; ++half) {
      each_words<kFormat>(rb.codes + k / 64 * code_stride(kFormat),
                          rb.sub + k / kSubGroup * kRowBlock, levels, half,
                          [&](int v, const Words& w) {
                            to[2 * v + half] = w.low_even;
                            to[2 * (v + 8) + half] = w.low_odd;
                            to[2 * (v + 16) + half] = w.high_even;
                            to[2 * (v + 24) + half] = w.high_odd;
                          });
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

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m == 1) return matvec<kFormat>(a);
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
      widen_row(a.xq->q + (p.m0 + m) * kp, kp, pairs + m * (kp / 2));
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
      quantize_64(from, out->q + i * out->cols + g * kActGroup, out->scale + i * groups + g,
                  out->bias + i * groups + g, out->half_bias + 2 * (i * groups + g));
    }
  }
}

void matmul_avx2(const MatmulArgs* args) {
  switch (args->w.format) {
    case WeightFormat::q8:
      return matmul_quantized<WeightFormat::q8>(*args);
    case WeightFormat::q6:
      return matmul_quantized<WeightFormat::q6>(*args);
    case WeightFormat::q4:
      return matmul_quantized<WeightFormat::q4>(*args);
    case WeightFormat::q8g32h:
      return matmul_quantized<WeightFormat::q8g32h>(*args);
    case WeightFormat::q4g32h:
    case WeightFormat::iq4g32h:
    case WeightFormat::mxfp4:
      return matmul_quantized<WeightFormat::q4g32h>(*args);
    default:
      return matmul_float_avx2(args);
  }
}

}  // namespace musespark

// Quantized matmul for a few rows (up to 16) with AVX-512 VNNI: weights go from memory to registers
// once, as biased bytes, and meet every row there.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/gathered.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/stream_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

// Exact sums of the first and last 32 columns of 64 for kRows rows; formats whose scales hold for
// all 64 have both in sum[m][0].
template <WeightFormat kFormat, int kRows, int kSums>
inline void dot64_few(const std::uint8_t* codes, std::int64_t ahead, const std::int8_t* sub,
                      const std::int8_t* q, const std::int32_t* half_bias, __m512i levels,
                      __m512i (&sum)[kRows][kSums]) {
  const SubWords scales = sub_scales<kFormat>(sub);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    if constexpr (kSums == 2) {
      sum[m][0] = _mm512_set1_epi32(half_bias[2 * m]);
      sum[m][1] = _mm512_set1_epi32(half_bias[2 * m + 1]);
    } else {
      sum[m][0] = _mm512_set1_epi32(half_bias[2 * m] + half_bias[2 * m + 1]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    prefetch_codes<kFormat>(codes, ahead, v);
    const Bytes w = code_bytes<kFormat, true>(codes, v, levels, scales.low, scales.high);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const std::int8_t* x = q + m * kActGroup + 4 * v;
      sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], w.low, _mm512_set1_epi32(load_i32(x)));
      __m512i& second = sum[m][kSums - 1];
      second = _mm512_dpbusd_epi32(second, w.high, _mm512_set1_epi32(load_i32(x + 32)));
    }
  }
}

// kBlocks row blocks side by side, 64 columns of each in turn.
template <WeightFormat kFormat, int kBlocks, int kRows>
void few_blocks(const MatmulArgs& a, std::int64_t first_block, const Gathered<kRows>& x) {
  constexpr int kSums = is_g32(kFormat) ? 2 : 1;
  constexpr std::int64_t kGroups = is_g32(kFormat) ? 1 : block_cols(kFormat) / kActGroup;
  const std::int64_t groups = a.xq->cols / kActGroup;
  const __m512i levels = code_levels<kFormat, true>(a.w.format);
  RowBlock rb[kBlocks];
  __m512i sums[kBlocks][kRows];  // over a block
  __m512 total[kBlocks][kRows];
  for (int i = 0; i < kBlocks; ++i) {
    rb[i] = row_block(a.w, first_block + i);
    for (int m = 0; m < kRows; ++m) {
      sums[i][m] = _mm512_setzero_si512();
      total[i][m] = _mm512_setzero_ps();
    }
  }
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    const std::int64_t ahead = fetch_distance<kFormat>(g, groups, to_next);
    const std::int8_t* q = x.q + g * Gathered<kRows>::kDots;
    const float* scale = x.scale + g * kRows;
    const std::int32_t* half_bias = x.half_bias + g * 2 * kRows;
#pragma GCC unroll 1
    for (int i = 0; i < kBlocks; ++i) {
      compiler_barrier();  // or the loads of q, the same for every i, move out and spill
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[i].row) + to_next + 64 * g);
      __m512i sum[kRows][kSums];
      dot64_few<kFormat, kRows, kSums>(rb[i].codes + g * code_stride(kFormat), ahead,
                                       rb[i].sub + 2 * kRowBlock * g, q, half_bias, levels, sum);
      if constexpr (is_g32(kFormat)) {
        const __m512 block0 = block_scales(rb[i].block + 2 * g * kRowBlock);
        const __m512 block1 = block_scales(rb[i].block + (2 * g + 1) * kRowBlock);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[m][0]), block0);
          t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][kSums - 1]), block1, t);
          total[i][m] = _mm512_fmadd_ps(t, _mm512_set1_ps(scale[m]), total[i][m]);
        }
        continue;
      }
      if (kGroups > 1) {
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          sum[m][0] = sums[i][m] = _mm512_add_epi32(sums[i][m], sum[m][0]);
        }
      }
      if (!block_ends) continue;
      const __m512 block = block_scales(rb[i].block + g / kGroups * kRowBlock);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[m][0]), _mm512_set1_ps(scale[m]));
        total[i][m] = _mm512_fmadd_ps(f, block, total[i][m]);
        sums[i][m] = _mm512_setzero_si512();
      }
    }
  }
  for (int i = 0; i < kBlocks; ++i) store_block(a, first_block + i, rb[i].row, total[i]);
}

template <WeightFormat kFormat, int kRows>
void few(const MatmulArgs& a) {
  const Gathered<kRows> x(*a.xq, a.scratch);
  std::int64_t b = a.block_begin;
  for (; b + kStreams <= a.block_end; b += kStreams) few_blocks<kFormat, kStreams, kRows>(a, b, x);
  for (; b < a.block_end; ++b) few_blocks<kFormat, 1, kRows>(a, b, x);
}

// M = 1 .. 16, made up to one of a few sizes.
template <WeightFormat kFormat>
void few_rows(const MatmulArgs& a) {
  if constexpr (has_sub(kFormat)) {
    if (a.m == 1) return stream<kFormat, 1>(a);
    if (a.m == 2) return stream<kFormat, 2>(a);
  }
  if (a.m == 1) return few<kFormat, 1>(a);
  if (a.m == 2) return few<kFormat, 2>(a);
  if (a.m <= 4) return few<kFormat, 4>(a);
  if (a.m <= 6) return few<kFormat, 6>(a);
  if (a.m <= 8) return few<kFormat, 8>(a);
  if (a.m <= 12) return few<kFormat, 12>(a);
  return few<kFormat, 16>(a);
}

}  // namespace
}  // namespace musespark

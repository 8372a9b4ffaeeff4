// Quantized matmul for one or two rows of formats with sub-scales, with AVX-512 VNNI: weights go
// from memory to registers once, as int16, and meet int16 activations in vpdpwssd. (Bytes as in
// few_avx512.inl cost six operations more a code vector and two fewer a row.)
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

// int8 activations as int16 pairs: per 64 columns 16 dwords (k0, k2) of each quad, 16 dwords (k1,
// k3).
void widen_activations(const std::int8_t* q, std::int64_t kp, std::int32_t* pairs) {
  for (std::int64_t k = 0; k < kp; k += 64) {
    const __m512i bytes = _mm512_load_si512(q + k);
    _mm512_store_si512(pairs + k / 2, _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8));
    _mm512_store_si512(pairs + k / 2 + 16, _mm512_srai_epi16(bytes, 8));
  }
}

// Exact sums over 64 columns for 16 rows of weights and kRows activation rows `stride` dwords
// apart, pairs as widen_activations writes them.
template <WeightFormat kFormat, int kRows>
inline void dot64_words(const std::uint8_t* codes, std::int64_t ahead, const std::int8_t* sub,
                        const std::int32_t* pairs, std::int64_t stride, __m512i (&sum)[kRows]) {
  constexpr int kChains = kRows == 1 ? 4 : 2;  // independent sums per row hide the latency
  const SubWords scales = sub_scales<kFormat>(sub);
  const __m512i levels = code_levels<kFormat, false>(kFormat);
  __m512i acc[kRows][kChains];
  for (int m = 0; m < kRows; ++m) {
    for (int i = 0; i < kChains; ++i) acc[m][i] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    prefetch_codes<kFormat>(codes, ahead, v);
    const Words w = code_words<kFormat>(codes, v, levels, scales.low, scales.high);
#pragma GCC unroll 2
    for (int m = 0; m < kRows; ++m) {
      const std::int32_t* p = pairs + m * stride + v;
      __m512i* a = acc[m];
      a[0] = _mm512_dpwssd_epi32(a[0], w.low_even, _mm512_set1_epi32(p[0]));
      a[1] = _mm512_dpwssd_epi32(a[1], w.low_odd, _mm512_set1_epi32(p[16]));
      a[2 % kChains] = _mm512_dpwssd_epi32(a[2 % kChains], w.high_even, _mm512_set1_epi32(p[8]));
      a[3 % kChains] = _mm512_dpwssd_epi32(a[3 % kChains], w.high_odd, _mm512_set1_epi32(p[24]));
    }
  }
  for (int m = 0; m < kRows; ++m) {
    sum[m] = _mm512_add_epi32(acc[m][0], acc[m][1]);
    if constexpr (kChains == 4) {
      sum[m] = _mm512_add_epi32(sum[m], _mm512_add_epi32(acc[m][2], acc[m][3]));
    }
  }
}

template <WeightFormat kFormat, int kBlocks, int kRows>
void stream_blocks(const MatmulArgs& a, std::int64_t first_block, const std::int32_t* pairs) {
  constexpr std::int64_t kGroups = block_cols(kFormat) / kActGroup;
  const std::int64_t kp = a.xq->cols, groups = kp / kActGroup;
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
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
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    const std::int64_t ahead = fetch_distance<kFormat>(g, groups, to_next);
#pragma GCC unroll 1
    for (int i = 0; i < kBlocks; ++i) {
      compiler_barrier();  // or the loads of pairs, the same for every i, move out and spill
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[i].row) + to_next + 64 * g);
      __m512i sum_i32x16[kRows];
      dot64_words<kFormat, kRows>(rb[i].codes + g * code_stride(kFormat), ahead,
                                  rb[i].sub + 2 * kRowBlock * g, pairs + 32 * g, kp / 2,
                                  sum_i32x16);
      for (int m = 0; m < kRows; ++m) {
        sums[i][m] = _mm512_add_epi32(sums[i][m], sum_i32x16[m]);
        if (!block_ends) continue;
        const __m512 scale = _mm512_set1_ps(a.xq->scale[m * groups + g]);
        const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][m]), scale);
        total[i][m] =
            _mm512_fmadd_ps(f, block_scales(rb[i].block + g / kGroups * kRowBlock), total[i][m]);
        sums[i][m] = _mm512_setzero_si512();
      }
    }
  }
  for (int i = 0; i < kBlocks; ++i) store_block(a, first_block + i, rb[i].row, total[i]);
}

template <WeightFormat kFormat, int kRows>
void stream(const MatmulArgs& a) {
  const std::int64_t kp = a.xq->cols;
  std::int32_t* pairs = static_cast<std::int32_t*>(a.scratch);
  for (int m = 0; m < kRows; ++m)
    widen_activations(a.xq->q + m * a.xq->stride, kp, pairs + m * (kp / 2));
  std::int64_t b = a.block_begin;
  for (; b + kStreams <= a.block_end; b += kStreams)
    stream_blocks<kFormat, kStreams, kRows>(a, b, pairs);
  for (; b < a.block_end; ++b) stream_blocks<kFormat, 1, kRows>(a, b, pairs);
}

}  // namespace
}  // namespace musespark

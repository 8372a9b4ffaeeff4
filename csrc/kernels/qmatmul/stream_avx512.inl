// Quantized matmul for M = 1 .. 4 with AVX-512 VNNI: weights go from memory to registers once.
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
inline void dot64_words(const std::uint8_t* codes, const std::int8_t* sub,
                        const std::int32_t* pairs, std::int64_t stride, __m512i (&sum)[kRows]) {
  constexpr int kChains = kRows == 1 ? 4 : 2;  // independent sums per row hide the latency
  const __m512i sub_low = sub_words(sub), sub_high = sub_words(sub + kRowBlock);
  const __m512i levels = level_bytes(WeightFormat::q4);
  __m512i acc[kRows][kChains];
  for (int m = 0; m < kRows; ++m) {
    for (int i = 0; i < kChains; ++i) acc[m][i] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    const __m512i code = load512(codes + 64 * v);
    Words w;
    if constexpr (kFormat == WeightFormat::q4) {
      w = q4_words(code, levels, sub_low, sub_high);
    } else {
      const __m512i high = load512(codes + 512 + 64 * (v % 4));
      w = v < 4 ? q6_words<0>(code, high, sub_low, sub_high)
                : q6_words<1>(code, high, sub_low, sub_high);
    }
#pragma GCC unroll 4
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

template <int kRows>
inline void dot64_q8(const std::uint8_t* codes, const std::int8_t* q, std::int64_t kp,
                     const std::int32_t* bias, std::int64_t groups, __m512i (&sum)[kRows]) {
  constexpr int kChains = kRows == 1 ? 4 : 2;
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512i acc[kRows][kChains];
  for (int m = 0; m < kRows; ++m) {
    acc[m][0] = _mm512_set1_epi32(bias[m * groups]);
    for (int i = 1; i < kChains; ++i) acc[m][i] = _mm512_setzero_si512();
  }
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) {
    const __m512i w = _mm512_xor_si512(load512(codes + 64 * v), flip);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      __m512i& a = acc[m][v % kChains];
      a = _mm512_dpbusd_epi32(a, w, _mm512_set1_epi32(load_i32(q + m * kp + 4 * v)));
    }
  }
  for (int m = 0; m < kRows; ++m) {
    sum[m] = _mm512_add_epi32(acc[m][0], acc[m][1]);
    if constexpr (kChains == 4) {
      sum[m] = _mm512_add_epi32(sum[m], _mm512_add_epi32(acc[m][2], acc[m][3]));
    }
  }
}

// Exact sums over the first and the last 32 columns of 64, of a format with a scale for each.
template <WeightFormat kFormat, int kRows>
inline void dot32_pair(const std::uint8_t* codes, const std::int8_t* q, std::int64_t kp,
                       const std::int32_t* half_bias, __m512i levels, __m512i (&sum)[kRows][2]) {
  for (int m = 0; m < kRows; ++m) {
    for (int h = 0; h < 2; ++h) sum[m][h] = _mm512_set1_epi32(half_bias[m * (kp / 32) + h]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    const Bytes w = plain_bytes<kFormat, true>(codes, v, levels);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const std::int8_t* x = q + m * kp + 4 * v;
      sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], w.low, _mm512_set1_epi32(load_i32(x)));
      sum[m][1] = _mm512_dpbusd_epi32(sum[m][1], w.high, _mm512_set1_epi32(load_i32(x + 32)));
    }
  }
}

// Group g of one row block: total += (the two sums times their block scales) * activation scale.
template <WeightFormat kFormat, int kRows>
inline void g32_group(const QuantizedRows& x, const RowBlock& rb, std::int64_t g, __m512i levels,
                      __m512 (&total)[kRows]) {
  const std::int64_t kp = x.cols, groups = kp / kActGroup;
  __m512i sum_i32x16[kRows][2];
  dot32_pair<kFormat, kRows>(rb.codes + g * code_stride(kFormat), x.q + 64 * g, kp,
                             x.half_bias + 2 * g, levels, sum_i32x16);
  const __m512 block0 = block_scales(rb.block + 2 * g * kRowBlock);
  const __m512 block1 = block_scales(rb.block + (2 * g + 1) * kRowBlock);
  for (int m = 0; m < kRows; ++m) {
    __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum_i32x16[m][0]), block0);
    t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_i32x16[m][1]), block1, t);
    total[m] = _mm512_fmadd_ps(t, _mm512_set1_ps(x.scale[m * groups + g]), total[m]);
  }
}

// kStreams row blocks side by side, 64 columns of each in turn. Several pages are then being read
// at once: a single stream stalls at every 4 KiB page, where the hardware prefetcher stops and the
// page walk begins. Codes are prefetched about 1 KiB ahead, the scales of the next kStreams row
// blocks a line a step. (q4 on Sapphire Rapids, 4 KiB pages: 17 GB/s plain, 28 so.)
template <WeightFormat kFormat, int kStreams, int kRows>
void stream_blocks(const MatmulArgs& a, std::int64_t first_block, const std::int32_t* pairs) {
  constexpr std::int64_t kGroups = is_g32(kFormat) ? 1 : block_cols(kFormat) / kActGroup;
  constexpr std::int64_t kStride = code_stride(kFormat);
  constexpr std::int64_t kAhead = kStride == 512 ? 2 : 1;  // about 1 KiB
  const std::int64_t kp = a.xq->cols, groups = kp / kActGroup;
  const __m512i levels = level_bytes<true>(a.w.format);
  RowBlock rb[kStreams];
  __m512 f[kStreams][kRows], total[kStreams][kRows];
  for (int i = 0; i < kStreams; ++i) {
    rb[i] = row_block(a.w, first_block + i);
    for (int m = 0; m < kRows; ++m) f[i][m] = total[i][m] = _mm512_setzero_ps();
  }
  const std::int64_t to_next = kStreams * a.w.row_block_bytes;
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    const std::int64_t g_ahead = g + kAhead;
    const std::int64_t ahead =
        g_ahead < groups ? g_ahead * kStride : (g_ahead - groups) * kStride + to_next;
#pragma GCC unroll 1
    for (int i = 0; i < kStreams; ++i) {
      const std::uint8_t* codes = rb[i].codes + g * kStride;
      for (std::int64_t line = 0; line < kStride; line += 64) prefetch(rb[i].codes + ahead + line);
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[i].row) + to_next + 64 * g);
      if constexpr (is_g32(kFormat)) {
        g32_group<kFormat, kRows>(*a.xq, rb[i], g, levels, total[i]);
        continue;
      }
      __m512i sum_i32x16[kRows];
      if constexpr (kFormat == WeightFormat::q8) {
        dot64_q8<kRows>(codes, a.xq->q + 64 * g, kp, a.xq->bias + g, groups, sum_i32x16);
      } else {
        dot64_words<kFormat, kRows>(codes, rb[i].sub + 2 * kRowBlock * g, pairs + 32 * g, kp / 2,
                                    sum_i32x16);
      }
      for (int m = 0; m < kRows; ++m) {
        const __m512 scale = _mm512_set1_ps(a.xq->scale[m * groups + g]);
        f[i][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_i32x16[m]), scale, f[i][m]);
        if (!block_ends) continue;
        total[i][m] = _mm512_fmadd_ps(f[i][m], block_scales(rb[i].block + g / kGroups * kRowBlock),
                                      total[i][m]);
        f[i][m] = _mm512_setzero_ps();
      }
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    const std::int64_t b = first_block + i;
    for (int m = 0; m < kRows; ++m) {
      _mm512_mask_storeu_ps(a.out + m * a.ldo + b * kRowBlock, row_mask(a.w, b),
                            _mm512_mul_ps(total[i][m], _mm512_loadu_ps(rb[i].row)));
    }
  }
}

template <WeightFormat kFormat, int kRows>
void stream(const MatmulArgs& a) {
  const std::int64_t kp = a.xq->cols;
  std::int32_t* pairs = static_cast<std::int32_t*>(a.scratch);
  if constexpr (has_sub(kFormat)) {
    for (int m = 0; m < kRows; ++m) widen_activations(a.xq->q + m * kp, kp, pairs + m * (kp / 2));
  }
  std::int64_t b = a.block_begin;
  for (; b + 8 <= a.block_end; b += 8) stream_blocks<kFormat, 8, kRows>(a, b, pairs);
  for (; b + 2 <= a.block_end; b += 2) stream_blocks<kFormat, 2, kRows>(a, b, pairs);
  if (b < a.block_end) stream_blocks<kFormat, 1, kRows>(a, b, pairs);
}

}  // namespace
}  // namespace musespark

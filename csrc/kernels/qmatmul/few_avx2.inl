// Quantized matmul for a few rows with 256-bit vectors: weights go from memory to registers once,
// as int16, and meet every row there, in vpmaddwd or, where there is AVX-VNNI, vpdpwssd.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

// int8 activations as int16 pairs: per 32 columns 8 dwords (k0, k2) of each quad, 8 dwords (k1,
// k3).
inline void widen_32(const std::int8_t* q, std::int32_t* pairs) {
  const __m256i bytes = load256(q);
  _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), even_words(bytes));
  _mm256_store_si256(reinterpret_cast<__m256i*>(pairs + 8), odd_words(bytes));
}

// acc + the products of two columns for each of 8 rows.
inline __m256i dot_words(__m256i acc, __m256i words, const std::int32_t* pair) {
#ifdef __AVXVNNI__
  return _mm256_dpwssd_avx_epi32(acc, words, _mm256_set1_epi32(*pair));
#else
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi32(*pair)));
  __asm__("" : "+x"(acc));  // or the compiler adds all products up at the end, after spilling them
  return acc;
#endif
}

// Chains of sums for each row, where the rows are too few to hide the latency of one.
constexpr int chains_of(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// kRows rows of activations, widened and side by side, so that one pointer reaches all of them;
// those past the last are zeros.
template <WeightFormat kForm, int kRows>
struct WordRows {
  static constexpr WeightFormat kFormat = kForm;
  static constexpr int kCount = kRows, kChains = chains_of(kRows);
  using Chains = __m256i[kRows][kChains];
  const std::int32_t* pairs;  // [groups][kRows][32]
  const float* scale;         // [groups][kRows]

  WordRows(const QuantizedRows& x, void* to) {
    const std::int64_t groups = x.cols / kActGroup;
    auto* row = static_cast<std::int32_t*>(to);
    auto* out_scale = reinterpret_cast<float*>(row + groups * kRows * 32);
    pairs = row;
    scale = out_scale;
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t m = 0; m < kRows; ++m, row += 32) {
        *out_scale++ = m < x.rows ? x.scale[m * groups + g] : 0.0f;
        if (m < x.rows) {
          widen_32(x.q + m * x.stride + g * kActGroup, row);
          widen_32(x.q + m * x.stride + g * kActGroup + 32, row + 16);
        } else {
          __builtin_memset(row, 0, 32 * sizeof *row);
        }
      }
    }
  }

  static __m256i levels(WeightFormat format) { return code_levels<kFormat>(format); }

  // Sums begin; kFirst and kLast say over which halves of group g they will be taken.
  template <int kFirst, int kLast>
  [[gnu::always_inline]] void start(std::int64_t, Chains& acc) const {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) acc[m][i] = _mm256_setzero_si256();
    }
  }

  // acc += the sums over a quarter of group g: 8 rows x 32 columns.
  template <int kSecond>
  [[gnu::always_inline]] void dot(const std::uint8_t* codes, std::int64_t ahead, int half,
                                  __m256i levels, __m256i sub, std::int64_t g, Chains& acc) const {
    const std::int32_t* x = pairs + g * kRows * 32 + 16 * kSecond;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      prefetch_quarter<kFormat>(codes, ahead, 2 * half + kSecond, v);
      const Pair w = code_pair<kFormat, kSecond>(codes + 32 * half, v, levels, sub);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        __m256i& even = acc[m][2 * v % kChains];
        even = dot_words(even, w.even, x + 32 * m + v);
        __m256i& odd = acc[m][(2 * v + 1) % kChains];
        odd = dot_words(odd, w.odd, x + 32 * m + v + 8);
      }
    }
  }
};

// The chains of one row, summed.
template <int kChains>
inline __m256i joined(const __m256i (&acc)[kChains]) {
  __m256i sum = acc[0];
#pragma GCC unroll 4
  for (int i = 1; i < kChains; ++i) sum = _mm256_add_epi32(sum, acc[i]);
  return sum;
}

// One row block and its sums with the rows of activations, a WordRows or another of its kind.
template <class Rows>
struct FewBlock {
  static constexpr WeightFormat kFormat = Rows::kFormat;
  static constexpr int kRows = Rows::kCount;
  static constexpr std::int64_t kGroups = is_g32(kFormat) ? 1 : block_cols(kFormat) / kActGroup;
  RowBlock rb;
  __m256i sums[2][kRows];  // of 8 rows each, over a block
  __m256 total[2][kRows];

  // 64 columns of rows 8 * half on.
  [[gnu::always_inline]] void add(const Rows& x, std::int64_t g, int half, std::int64_t ahead,
                                  __m256i levels, bool block_ends) {
    if constexpr (is_g32(kFormat)) return add_g32(x, g, half, ahead, levels);
    const std::uint8_t* codes = rb.codes + g * code_stride(kFormat);
    const std::int8_t* sub = rb.sub + 2 * kRowBlock * g + 8 * half;
    const float* scale = x.scale + g * kRows;
    typename Rows::Chains acc;
    x.template start<0, 1>(g, acc);
    x.template dot<0>(codes, ahead, half, levels, sub_scales<kFormat>(sub), g, acc);
    x.template dot<1>(codes, ahead, half, levels, sub_scales<kFormat>(sub + kRowBlock), g, acc);
    __m256i sum[kRows];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      sum[m] = joined(acc[m]);
      if (kGroups > 1) sum[m] = sums[half][m] = _mm256_add_epi32(sums[half][m], sum[m]);
    }
    if (!block_ends) return;
    const __m256 block = block_scales(rb.block + g / kGroups * kRowBlock + 8 * half);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[m]), _mm256_set1_ps(scale[m]));
      total[half][m] = _mm256_fmadd_ps(f, block, total[half][m]);
      sums[half][m] = _mm256_setzero_si256();
    }
  }

  // The same where a scale holds for 32 columns.
  [[gnu::always_inline]] void add_g32(const Rows& x, std::int64_t g, int half, std::int64_t ahead,
                                      __m256i levels) {
    const std::uint8_t* codes = rb.codes + g * code_stride(kFormat);
    const std::uint16_t* block = rb.block + 2 * g * kRowBlock + 8 * half;
    const float* scale = x.scale + g * kRows;
    const __m256i no_sub = _mm256_setzero_si256();
    typename Rows::Chains acc;
    __m256 t[kRows];
    x.template start<0, 0>(g, acc);
    x.template dot<0>(codes, ahead, half, levels, no_sub, g, acc);
    const __m256 block0 = block_scales(block), block1 = block_scales(block + kRowBlock);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      t[m] = _mm256_mul_ps(_mm256_cvtepi32_ps(joined(acc[m])), block0);
    }
    x.template start<1, 1>(g, acc);
    x.template dot<1>(codes, ahead, half, levels, no_sub, g, acc);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      t[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(joined(acc[m])), block1, t[m]);
      total[half][m] = _mm256_fmadd_ps(t[m], _mm256_set1_ps(scale[m]), total[half][m]);
    }
  }
};

// kBlocks row blocks side by side, 64 columns of each in turn.
template <class Rows, int kBlocks>
void few_blocks(const MatmulArgs& a, std::int64_t first_block, const Rows& x) {
  using Block = FewBlock<Rows>;
  constexpr int kRows = Rows::kCount;
  const std::int64_t groups = a.xq->cols / kActGroup;
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  const __m256i levels = Rows::levels(a.w.format);
  Block blocks[kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    blocks[i].rb = row_block(a.w, first_block + i);
    for (int half = 0; half < 2; ++half) {
      for (int m = 0; m < kRows; ++m) {
        blocks[i].sums[half][m] = _mm256_setzero_si256();
        blocks[i].total[half][m] = _mm256_setzero_ps();
      }
    }
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % Block::kGroups == 0 || g + 1 == groups;
    const std::int64_t ahead = fetch_distance<Rows::kFormat>(g, groups, to_next);
#pragma GCC unroll 1
    for (int i = 0; i < kBlocks; ++i) {
      prefetch(reinterpret_cast<const std::uint8_t*>(blocks[i].rb.row) + to_next + 64 * g);
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) {
        compiler_barrier();  // or loads of activations, always the same, move out and spill
        blocks[i].add(x, g, half, ahead, levels, block_ends);
      }
    }
  }
  for (int i = 0; i < kBlocks; ++i) {
    const std::int64_t b = first_block + i;
    for (int half = 0; half < 2; ++half) {
      const __m256 row = _mm256_loadu_ps(blocks[i].rb.row + 8 * half);
      for (int m = 0; m < kRows && m < a.m; ++m) {
        store_rows(a.w, b, half, a.out + m * a.ldo + b * kRowBlock,
                   _mm256_mul_ps(blocks[i].total[half][m], row));
      }
    }
  }
}

template <class Rows>
void few(const MatmulArgs& a) {
  const Rows x(*a.xq, a.scratch);
  std::int64_t b = a.block_begin;
  for (; b + kStreams <= a.block_end; b += kStreams) few_blocks<Rows, kStreams>(a, b, x);
  for (; b < a.block_end; ++b) few_blocks<Rows, 1>(a, b, x);
}

}  // namespace
}  // namespace musespark

// Many rows with 256-bit vectors: what the AVX2 and AVX-VNNI files share. A panel, one chunk of
// columns of a row block unpacked to L1, meets the activation rows of a pass in register tiles;
// sums between chunks rest in memory of their own, not in `out`, whose rows are often a power of
// two apart and would share a few cache sets.
//
// A level brings Panel, a PanelRows with its unpacked weights, and Tile<kRows>, where a register
// tile reads:
//
//   Tile(panel, first activation row, columns of a block scale)
//   groups(g, count, acc)         exact sums over 64 * count columns from group g on, [row][half]:
//                                 of weight rows 0..7 and 8..15
//   half_group<kSecond>(g, acc)   over the first or last 32 columns of group g
//   scale, all_groups, block, sums
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanels = 4;  // that share a chunk of activations

struct PanelRows {
  const MatmulArgs* args;
  RowBlock rb;
  std::int64_t block;     // its index
  float* sums;            // [rows][16]
  std::int64_t m0, rows;  // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;  // the chunk
  bool last;              // it is the last: sums go to `out`
};

// A scale per 32 columns.
template <class Tile>
inline void tile_blocks_of_32(const Tile& t, std::int64_t groups) {
  constexpr int kRows = Tile::kRows;
  __m256 f[kRows][2];  // rests in memory during the second half
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    t.template half_group<0>(g, acc);
    both_scales(t.block + 2 * g * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      f[i / 2][i % 2] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2]);
    }
    rest_in_memory(f);
    t.template half_group<1>(g, acc);
    both_scales(t.block + (2 * g + 1) * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      add_scaled(t.sums + 8 * i,
                 _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2], f[i / 2][i % 2]),
                 _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]));
    }
  }
}

// A scale per 64 columns.
template <class Tile>
inline void tile_blocks_of_64(const Tile& t, std::int64_t groups) {
  constexpr int kRows = Tile::kRows;
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    t.groups(g, 1, acc);
    both_scales(t.block + g * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      const __m256 x = _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]);
      const __m256 sum = _mm256_cvtepi32_ps(acc[i / 2][i % 2]);
      add_scaled(t.sums + 8 * i, _mm256_fmadd_ps(sum, x, _mm256_setzero_ps()), s[i % 2]);
    }
  }
}

// A scale per kGroups * 64 columns.
template <std::int64_t kGroups, class Tile>
inline void tile_long_blocks(const Tile& t, std::int64_t groups) {
  constexpr int kRows = Tile::kRows;
  for (std::int64_t g = 0; g < groups; g += kGroups) {
    __m256i acc[kRows][2];
    __m256 s[2];
    t.groups(g, groups - g < kGroups ? groups - g : kGroups, acc);
    both_scales(t.block + g / kGroups * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      const __m256 x = _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]);
      const __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), x);
      add_scaled(t.sums + 8 * i, f, s[i % 2]);
    }
  }
}

// Tile::kRows activation rows from m on over the panel. Not inlined, or its registers mix with
// others'.
template <WeightFormat kFormat, class Tile, class Panel>
[[gnu::noinline]] void tile(const Panel& p, std::int64_t m) {
  const Tile t(p, m, block_cols(kFormat));
  const std::int64_t groups = p.cols / kActGroup;
  if constexpr (is_g32(kFormat)) {
    tile_blocks_of_32(t, groups);
  } else if constexpr (kFormat == WeightFormat::q8) {
    tile_blocks_of_64(t, groups);
  } else {
    tile_long_blocks<block_cols(kFormat) / kActGroup>(t, groups);
  }
}

// `count` <= kMost activation rows from m on.
template <WeightFormat kFormat, template <int> class Tile, int kMost, class Panel>
void some_rows(const Panel& p, std::int64_t m, std::int64_t count) {
  if (count == kMost) return tile<kFormat, Tile<kMost>>(p, m);
  if constexpr (kMost > 1) some_rows<kFormat, Tile, kMost - 1>(p, m, count);
}

// Where the results of row m go: lines that lie pages apart.
inline float* out_of(const PanelRows& p, std::int64_t m) {
  return p.args->out + (p.m0 + m) * p.args->ldo + p.block * kRowBlock;
}

// The sums of `count` rows from m on, times the row scales, to `out`.
inline void store_sums(const PanelRows& p, std::int64_t m, std::int64_t count) {
  for (std::int64_t end = m + count; m < end; ++m) {
    for (int half = 0; half < 2; ++half) {
      const __m256 total = _mm256_load_ps(p.sums + m * kRowBlock + 8 * half);
      store_rows(p.args->w, p.block, half, out_of(p, m),
                 _mm256_mul_ps(total, _mm256_loadu_ps(p.rb.row + 8 * half)));
    }
  }
}

// In tiles as even as can be: one of few rows loads weights for few sums, and cannot hide latency.
template <WeightFormat kFormat, template <int> class Tile, int kTileRows, class Panel>
void all_rows(const Panel& p) {
  std::int64_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  for (std::int64_t m = 0; tiles > 0; --tiles) {
    const std::int64_t count = (p.rows - m + tiles - 1) / tiles;
    for (std::int64_t i = 0; i < count && p.last; ++i) prefetch(out_of(p, m + i));
    some_rows<kFormat, Tile, kTileRows>(p, m, count);
    if (p.last) store_sums(p, m, count);
    m += count;
  }
}

// `count` row blocks from `first` on in panels side by side: each chunk of the activations meets
// all of them while it is in the second-level cache. work(panel, ahead) unpacks the panel, fetching
// the codes `ahead`, and runs its rows; `sums`: count * rows * 16 floats.
template <WeightFormat kFormat, std::int64_t kPanelCols, class Panel, class Work>
[[gnu::always_inline]] inline void row_blocks(Panel p, std::int64_t first, std::int64_t count,
                                              float* sums, const Work& work) {
  const std::int64_t kp = p.args->xq->cols;
  __builtin_memset(sums, 0, count * p.rows * kRowBlock * sizeof *sums);
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    p.last = p.k0 + p.cols == kp;
    for (std::int64_t i = 0; i < count; ++i) {
      p.block = first + i;
      p.rb = row_block(p.args->w, p.block);
      p.sums = sums + i * p.rows * kRowBlock;
      work(p, panel_ahead<kFormat>(*p.args, 1, p.k0, kPanelCols, i, count));
    }
  }
}

}  // namespace
}  // namespace musespark

// Quantized matmul with AVX2. Bit-identical to scalar.cc.
//
// Weights become int16 words and meet int16 activations in vpmaddwd: exact, and unlike vpmaddubsw
// it cannot saturate.
//
//   M <= kFewRows   weights stream from memory to registers: few_avx2.inl.
//   more            activations are widened, as many rows at a time as suit the second-level
//                   cache; a panel of 16 weight rows x kPanelCols columns is unpacked to L1, then a
//                   register tile of 16 weight rows x up to kTileRows activation rows runs over it;
//                   sums between panels rest in scratch memory.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/few_avx2.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize_avx2.inl"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"
#include "kernels/qmatmul/widened.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 512;  // 16 rows x 512 words = 16 KiB of L1
constexpr std::int64_t kPanels = 4;       // that share a chunk of activations
constexpr int kTileRows = 4;
constexpr std::int64_t kFewRows = 8;

// One chunk of columns of a row block, and the sums that rest between chunks.
struct Panel {
  const MatmulArgs* args;
  RowBlock rb;
  std::int64_t block;         // its index
  const std::int32_t* pairs;  // of the chunk, in the order of widen_32: [rows][cols / 2]
  const __m256i* words;       // in the order of `pairs`, (rows 0..7, rows 8..15) of each
  float* sums;                // [rows][16]
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;      // the chunk
  bool last;                  // it is the last: sums go to `out`
};

// Where a register tile reads. The first two rows are addressed from `pairs`, the others from
// further pointers: that leaves no address to be computed between two products.
template <int kRows>
struct TileAt {
  const __m256i* words;
  const std::int32_t* pairs[2];  // of rows 0 and 3
  std::int64_t stride;           // pairs from row to row
  const float* scale;
  std::int64_t all_groups;  // scales from row to row
  const std::uint16_t* block;
  float* sums;  // [kRows][16]

  TileAt(const Panel& p, std::int64_t m, std::int64_t columns_of_block)
      : words(p.words), stride(p.cols / 2), all_groups(p.args->xq->cols / kActGroup) {
    pairs[0] = p.pairs + m * stride;
    pairs[1] = opaque(pairs[0] + 3 * stride);
    scale = p.args->xq->scale + (p.m0 + m) * all_groups + p.k0 / kActGroup;
    block = p.rb.block + p.k0 / columns_of_block * kRowBlock;
    sums = p.sums + m * kRowBlock;
  }
};

// Exact sums over kCols columns from column `first` on.
template <int kCols, int kRows>
[[gnu::always_inline]] inline void tile_dot(const TileAt<kRows>& t, std::int64_t first,
                                            __m256i (&acc)[kRows][2]) {
  const __m256i* words = t.words + first;
  const std::int64_t end = (first + kCols) / 2;
#pragma GCC unroll 4
  for (int c = 0; c < kRows; ++c) acc[c][0] = acc[c][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
  for (std::int64_t i0 = first / 2; i0 < end; i0 += 4) {
#pragma GCC unroll 4
    for (std::int64_t i = i0; i < i0 + 4; ++i, words += 2) {
      const __m256i w0 = words[0], w1 = words[1];
#pragma GCC unroll 4
      for (int c = 0; c < kRows; ++c) {
        const std::int32_t* pair = t.pairs[c / 3] + c % 3 * t.stride + i;
        acc[c][0] = dot_words(acc[c][0], w0, pair);
        acc[c][1] = dot_words(acc[c][1], w1, pair);
      }
    }
  }
}

// A scale per 32 columns.
template <int kRows>
inline void tile_blocks_of_32(const TileAt<kRows>& t, std::int64_t groups) {
  __m256 f[kRows][2];  // rests in memory during the second half
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    tile_dot<32, kRows>(t, 64 * g, acc);
    both_scales(t.block + 2 * g * kRowBlock, s);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kRows; ++i) {
      f[i / 2][i % 2] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2]);
    }
    rest_in_memory(f);
    tile_dot<32, kRows>(t, 64 * g + 32, acc);
    both_scales(t.block + (2 * g + 1) * kRowBlock, s);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kRows; ++i) {
      add_scaled(t.sums + 8 * i,
                 _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2], f[i / 2][i % 2]),
                 _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]));
    }
  }
}

// A scale per 64 columns.
template <int kRows>
inline void tile_blocks_of_64(const TileAt<kRows>& t, std::int64_t groups) {
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    tile_dot<64, kRows>(t, 64 * g, acc);
    both_scales(t.block + g * kRowBlock, s);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kRows; ++i) {
      const __m256 x = _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]);
      const __m256 sum = _mm256_cvtepi32_ps(acc[i / 2][i % 2]);
      add_scaled(t.sums + 8 * i, _mm256_fmadd_ps(sum, x, _mm256_setzero_ps()), s[i % 2]);
    }
  }
}

// A scale per 256 columns.
template <int kRows>
inline void tile_blocks_of_256(const TileAt<kRows>& t, std::int64_t groups) {
  constexpr std::int64_t kGroups = kBlockQ4 / kActGroup;
  for (std::int64_t g0 = 0; g0 < groups; g0 += kGroups) {
    __m256 f[kRows][2], s[2];  // f rests in memory during a group
    for (int c = 0; c < kRows; ++c) f[c][0] = f[c][1] = _mm256_setzero_ps();
    const std::int64_t end = g0 + kGroups < groups ? g0 + kGroups : groups;
#pragma GCC unroll 1
    for (std::int64_t g = g0; g < end; ++g) {
      rest_in_memory(f);
      __m256i acc[kRows][2];
      tile_dot<64, kRows>(t, 64 * g, acc);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * kRows; ++i) {
        f[i / 2][i % 2] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]),
                            _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]), f[i / 2][i % 2]);
      }
    }
    both_scales(t.block + g0 / kGroups * kRowBlock, s);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kRows; ++i) add_scaled(t.sums + 8 * i, f[i / 2][i % 2], s[i % 2]);
  }
}

// kRows activation rows from m on over the panel. Not inlined, or its registers mix with others'.
template <WeightFormat kFormat, int kRows>
[[gnu::noinline]] void tile(const Panel& p, std::int64_t m) {
  const TileAt<kRows> t(p, m, block_cols(kFormat));
  const std::int64_t groups = p.cols / kActGroup;
  if constexpr (is_g32(kFormat)) {
    tile_blocks_of_32<kRows>(t, groups);
  } else if constexpr (kFormat == WeightFormat::q8) {
    tile_blocks_of_64<kRows>(t, groups);
  } else {
    tile_blocks_of_256<kRows>(t, groups);
  }
}

// `count` <= kMost activation rows from m on.
template <WeightFormat kFormat, int kMost>
void some_rows(const Panel& p, std::int64_t m, std::int64_t count) {
  if (count == kMost) return tile<kFormat, kMost>(p, m);
  if constexpr (kMost > 1) some_rows<kFormat, kMost - 1>(p, m, count);
}

// Where the results of row m go: lines that lie pages apart.
inline float* out_of(const Panel& p, std::int64_t m) {
  return p.args->out + (p.m0 + m) * p.args->ldo + p.block * kRowBlock;
}

// The sums of `count` rows from m on, times the row scales, to `out`.
void store_sums(const Panel& p, std::int64_t m, std::int64_t count) {
  for (std::int64_t end = m + count; m < end; ++m) {
    for (int half = 0; half < 2; ++half) {
      const __m256 total = _mm256_load_ps(p.sums + m * kRowBlock + 8 * half);
      store_rows(p.args->w, p.block, half, out_of(p, m),
                 _mm256_mul_ps(total, _mm256_loadu_ps(p.rb.row + 8 * half)));
    }
  }
}

// In tiles as even as can be: a tile of few rows loads weights for few sums.
template <WeightFormat kFormat>
void all_rows(const Panel& p) {
  std::int64_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  for (std::int64_t m = 0; tiles > 0; --tiles) {
    const std::int64_t count = (p.rows - m + tiles - 1) / tiles;
    for (std::int64_t i = 0; i < count && p.last; ++i) prefetch(out_of(p, m + i));
    some_rows<kFormat, kTileRows>(p, m, count);
    if (p.last) store_sums(p, m, count);
    m += count;
  }
}

// Unpacks the panel; fetches the codes `ahead`, and a line of the next row block's scales.
template <WeightFormat kFormat>
void unpack_panel(const Panel& p, std::int64_t ahead, __m256i* words) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const __m256i levels = code_levels<kFormat>(p.args->w.format);
  const RowBlock& rb = p.rb;
  const std::int64_t to_next = p.args->w.row_block_bytes;
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

// `count` row blocks from `first` on in panels side by side: each chunk of the activations meets
// all of them while it is in the second-level cache. `pairs`: the whole pass, chunk after chunk.
template <WeightFormat kFormat>
void row_blocks(Panel p, const std::int32_t* pairs, __m256i* words, std::int64_t first,
                std::int64_t count) {
  auto* sums = reinterpret_cast<float*>(words + kPanelCols);
  const std::int64_t kp = p.args->xq->cols;
  p.words = words;
  __builtin_memset(sums, 0, count * p.rows * kRowBlock * sizeof *sums);
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    p.last = p.k0 + p.cols == kp;
    p.pairs = pairs + p.rows * p.k0 / 2;
    for (std::int64_t i = 0; i < count; ++i) {
      p.block = first + i;
      p.rb = row_block(p.args->w, p.block);
      p.sums = sums + i * p.rows * kRowBlock;
      unpack_panel<kFormat>(p, panel_ahead<kFormat>(*p.args, p.k0, kPanelCols, i, count), words);
      all_rows<kFormat>(p);
    }
  }
}

// The activations of a pass as int16 pairs, in chunks as panels have them.
void widen_pass(const Panel& p, std::int32_t* pairs) {
  const std::int64_t kp = p.args->xq->cols;
  for (std::int64_t k0 = 0; k0 < kp; k0 += kPanelCols) {
    const std::int64_t end = kp - k0 < kPanelCols ? kp : k0 + kPanelCols;
    for (std::int64_t m = p.m0; m < p.m0 + p.rows; ++m) {
      const std::int8_t* q = p.args->xq->q + m * p.args->xq->stride;
      for (std::int64_t k = k0; k < end; k += 32, pairs += 16) widen_32(q + k, pairs);
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
  const std::int64_t kp = a.xq->cols, pass_rows = widened_rows(kp);
  auto* pairs = static_cast<std::int32_t*>(a.scratch);
  auto* words = reinterpret_cast<__m256i*>(pairs + (a.m < pass_rows ? a.m : pass_rows) * kp / 2);
  Panel p{};
  p.args = &a;
  for (p.m0 = 0; p.m0 < a.m; p.m0 += pass_rows) {
    p.rows = a.m - p.m0 < pass_rows ? a.m - p.m0 : pass_rows;
    widen_pass(p, pairs);
    for (std::int64_t b = a.block_begin; b < a.block_end; b += kPanels) {
      row_blocks<kFormat>(p, pairs, words, b,
                          a.block_end - b < kPanels ? a.block_end - b : kPanels);
    }
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

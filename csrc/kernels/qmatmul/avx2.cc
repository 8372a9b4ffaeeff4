// Quantized matmul with AVX2. Bit-identical to scalar.cc.
//
// Weights become int16 words and meet int16 activations in vpmaddwd: exact, and unlike vpmaddubsw
// it cannot saturate.
//
//   M <= kFewRows   weights stream from memory to registers: few_avx2.inl.
//   more            activations are widened, as many rows at a time as suit the second-level
//                   cache; a panel of 16 weight rows x panel_cols columns is unpacked to L1, then a
//                   register tile of 16 weight rows x up to kTileRows activation rows runs over it;
//                   sums between panels rest in scratch memory.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/few_avx2.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/panel_avx2.inl"
#include "kernels/qmatmul/quantize.inl"
#include "kernels/qmatmul/quantize_avx2.inl"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"
#include "kernels/qmatmul/widened.inl"

namespace musespark {
namespace {

// 16 rows x 512 words = 16 KiB of L1; blocks of 1024 columns are not parted.
constexpr std::int64_t panel_cols(WeightFormat format) {
  return block_cols(format) == kBlockQ8Wide ? kBlockQ8Wide : 512;
}
constexpr int kTileRows = 4;
constexpr std::int64_t kFewRows = 8;

struct Panel : PanelRows {
  const std::int32_t* pairs;  // of the chunk, in the order of widen_32: [rows][cols / 2]
  const __m256i* words;       // in the order of `pairs`, (rows 0..7, rows 8..15) of each
};

// Where a register tile reads. Rows 0 to 2 are addressed from one pointer, row 3 from another: that
// leaves no address to be computed between two products.
template <int kCount>
struct TileAt {
  static constexpr int kRows = kCount;
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

  // Exact sums over `cols` columns from column `first` on.
  [[gnu::always_inline]] inline void dot(std::int64_t first, std::int64_t cols,
                                         __m256i (&acc)[kRows][2]) const {
    const __m256i* words = this->words + first;
    const std::int64_t end = (first + cols) / 2;
#pragma GCC unroll 4
    for (int c = 0; c < kRows; ++c) acc[c][0] = acc[c][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (std::int64_t i0 = first / 2; i0 < end; i0 += 4) {
#pragma GCC unroll 4
      for (std::int64_t i = i0; i < i0 + 4; ++i, words += 2) {
        const __m256i w0 = words[0], w1 = words[1];
#pragma GCC unroll 4
        for (int c = 0; c < kRows; ++c) {
          const std::int32_t* pair = pairs[c / 3] + c % 3 * stride + i;
          acc[c][0] = dot_words(acc[c][0], w0, pair);
          acc[c][1] = dot_words(acc[c][1], w1, pair);
        }
      }
    }
  }
  [[gnu::always_inline]] inline void groups(std::int64_t g, std::int64_t count,
                                            __m256i (&acc)[kRows][2]) const {
    dot(64 * g, 64 * count, acc);
  }
  template <int kSecond>
  [[gnu::always_inline]] inline void half_group(std::int64_t g, __m256i (&acc)[kRows][2]) const {
    dot(64 * g + 32 * kSecond, 32, acc);
  }
};

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

// The activations of a pass as int16 pairs, in chunks as panels have them.
void widen_pass(const Panel& p, std::int64_t panel_cols, std::int32_t* pairs) {
  const std::int64_t kp = p.args->xq->cols;
  for (std::int64_t k0 = 0; k0 < kp; k0 += panel_cols) {
    const std::int64_t end = kp - k0 < panel_cols ? kp : k0 + panel_cols;
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
  constexpr std::int64_t kPanelCols = panel_cols(kFormat);
  auto* sums = reinterpret_cast<float*>(words + kPanelCols);
  Panel p{};
  p.args = &a;
  p.words = words;
  for (p.m0 = 0; p.m0 < a.m; p.m0 += pass_rows) {
    p.rows = a.m - p.m0 < pass_rows ? a.m - p.m0 : pass_rows;
    widen_pass(p, kPanelCols, pairs);
    for (std::int64_t b = a.block_begin; b < a.block_end; b += kPanels) {
      const std::int64_t count = a.block_end - b < kPanels ? a.block_end - b : kPanels;
      row_blocks<kFormat, kPanelCols>(p, b, count, sums, [&](Panel& panel, std::int64_t ahead) {
        panel.pairs = pairs + panel.rows * panel.k0 / 2;
        unpack_panel<kFormat>(panel, ahead, words);
        all_rows<kFormat, TileAt, kTileRows>(panel);
      });
    }
  }
}

}  // namespace

void quantize_rows_avx2(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                        const QuantizedRows* out) {
  quantize_all(x, ldx, m, k, *out);
}

void matmul_avx2(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_avx2(args);
}

}  // namespace musespark

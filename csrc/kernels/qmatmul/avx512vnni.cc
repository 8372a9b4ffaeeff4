// Quantized matmul with AVX-512 VNNI. Bit-identical to scalar.cc.
//
//   M <= 16   weights stream from memory to registers: stream_avx512.inl (M <= 2 with sub-scales),
//             few_avx512.inl.
//   M > 16    a panel of 32 rows x kPanelCols columns is unpacked to biased bytes in L1, then a
//             register tile of 32 rows x up to 6 columns (4 where a scale holds for 32 columns)
//             runs over it; sums between panels rest in scratch memory. A pass of activation rows
//             meets all row blocks of the call, a chunk of its columns kPanels panels, while they
//             are in the second-level cache.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/few_avx512.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize.inl"
#include "kernels/qmatmul/quantize_avx512.inl"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 1024;  // 32 x 1024 bytes = 32 KiB of L1
constexpr std::int64_t kPassRows = 512;    // activation rows per unpacked panel
constexpr std::int64_t kPanels = 4;        // that share a chunk of activations
constexpr int kTileCols = 6;
constexpr int kTileColsLong = 8;  // one sum for each output, and nothing else
constexpr int kTileColsG32 = 4;  // two sums for each output; more would have to leave the registers

// One chunk of columns of kBlocks row blocks, and the sums that rest between chunks. Those are kept
// apart from `out`: its rows are often a power of two apart and would share a few cache sets.
struct Panel {
  const std::uint8_t* bytes[2];   // w8 + 128, [quads][16 rows][4 k]
  const std::uint16_t* block[2];  // block scales from the chunk's first block on
  const float* row[2];
  __mmask16 mask[2];
  float* sums;      // [tiles][kBlocks][kTileCols][16]
  std::int64_t m0;  // first activation row of this pass
  std::int64_t rows;
  std::int64_t out_row;   // first output of block 0; block 1 is the next 16
  std::int64_t k0, cols;  // the chunk
  bool first, last;
};

// Where a register tile reads: weights of its row blocks, activations, their scales and biases.
template <int kBlocks>
struct TileAt {
  const std::uint8_t* w8[kBlocks];
  const std::int8_t* q;
  const float* scale;
  const std::int32_t* bias;
  const std::int32_t* half_bias;
  std::int64_t stride, groups;
};

// Sums from group g on begin with the bias.
template <int kBlocks, int kRows>
inline void tile_start(const TileAt<kBlocks>& t, std::int64_t g, __m512i (&acc)[kBlocks][kRows]) {
#pragma GCC unroll 12
  for (int c = 0; c < kRows; ++c) {
    for (int b = 0; b < kBlocks; ++b) acc[b][c] = _mm512_set1_epi32(t.bias[c * t.groups + g]);
  }
}

// acc += the exact sums over the 64 columns of group g.
template <int kBlocks, int kRows>
inline void tile_dot(const TileAt<kBlocks>& t, std::int64_t g, __m512i (&acc)[kBlocks][kRows]) {
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) {
    __m512i w[kBlocks];
    for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_load_si512(t.w8[b] + g * 1024 + v * 64);
#pragma GCC unroll 12
    for (int c = 0; c < kRows; ++c) {
      const __m512i x = _mm512_set1_epi32(load_i32(t.q + c * t.stride + g * 64 + v * 4));
      for (int b = 0; b < kBlocks; ++b) acc[b][c] = _mm512_dpbusd_epi32(acc[b][c], w[b], x);
    }
  }
}

// Blocks of kGroups * 64 columns: sums += (exact sum * activation scale) * block scale.
template <std::int64_t kGroups, int kBlocks, int kRows>
inline void tile_long_blocks(const TileAt<kBlocks>& t, const Panel& p, float* sums) {
  const std::int64_t chunk_groups = p.cols / kActGroup;
  for (std::int64_t g0 = 0; g0 < chunk_groups; g0 += kGroups) {
    const std::int64_t g1 = g0 + kGroups < chunk_groups ? g0 + kGroups : chunk_groups;
    __m512i acc[kBlocks][kRows];
    tile_start<kBlocks, kRows>(t, g0, acc);
#pragma GCC unroll 1
    for (std::int64_t g = g0; g < g1; ++g) tile_dot<kBlocks, kRows>(t, g, acc);
    compiler_barrier();  // or the loads of sums move up and spill acc
    __m512 s[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      s[b] = block_scales(p.block[b] + g0 / kGroups * kRowBlock);
    }
#pragma GCC unroll 12
    for (int c = 0; c < kRows; ++c) {
      const __m512 x = _mm512_set1_ps(t.scale[c * t.groups + g0]);
      for (int b = 0; b < kBlocks; ++b) {
        float* sum = sums + (b * kRows + c) * 16;
        const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[b][c]), x);
        _mm512_store_ps(sum, _mm512_fmadd_ps(f, s[b], _mm512_load_ps(sum)));
      }
    }
  }
}

// The same where a block is one group: the sums stay in registers instead of f.
template <int kBlocks, int kRows>
inline void tile_blocks_of_64(const TileAt<kBlocks>& t, const Panel& p, float* sums) {
  __m512 total[kBlocks][kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    total[i / kRows][i % kRows] = _mm512_load_ps(sums + 16 * i);
  }
  for (std::int64_t g = 0; g < p.cols / kActGroup; ++g) {
    __m512i acc[kBlocks][kRows];
    tile_start<kBlocks, kRows>(t, g, acc);
    tile_dot<kBlocks, kRows>(t, g, acc);
    __m512 s[kBlocks];
    for (int b = 0; b < kBlocks; ++b) s[b] = block_scales(p.block[b] + g * kRowBlock);
#pragma GCC unroll 8
    for (int c = 0; c < kRows; ++c) {
      const __m512 x = _mm512_set1_ps(t.scale[c * t.groups + g]);
      for (int b = 0; b < kBlocks; ++b) {
        const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[b][c]), x, _mm512_setzero_ps());
        total[b][c] = _mm512_fmadd_ps(f, s[b], total[b][c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    _mm512_store_ps(sums + 16 * i, total[i / kRows][i % kRows]);
  }
}

// Exact sums over the first and the last 32 columns of group g.
template <int kBlocks, int kRows>
inline void tile_dot_halves(const TileAt<kBlocks>& t, std::int64_t g,
                            __m512i (&acc)[2][kBlocks][kRows]) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    for (int c = 0; c < kRows; ++c) {
      const __m512i bias = _mm512_set1_epi32(t.half_bias[2 * (c * t.groups + g) + h]);
      for (int b = 0; b < kBlocks; ++b) acc[h][b][c] = bias;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const std::int64_t quad = v + 8 * h;
      __m512i w[kBlocks];
      for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_load_si512(t.w8[b] + g * 1024 + quad * 64);
#pragma GCC unroll 8
      for (int c = 0; c < kRows; ++c) {
        const __m512i x = _mm512_set1_epi32(load_i32(t.q + c * t.stride + g * 64 + quad * 4));
        for (int b = 0; b < kBlocks; ++b) {
          acc[h][b][c] = _mm512_dpbusd_epi32(acc[h][b][c], w[b], x);
        }
      }
    }
  }
}

// Blocks of 32 columns: sums += (both halves of 64 columns, times their scales) * activation scale.
template <int kBlocks, int kRows>
inline void tile_blocks_of_32(const TileAt<kBlocks>& t, const Panel& p, float* sums) {
  __m512 total[kBlocks][kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    total[i / kRows][i % kRows] = _mm512_load_ps(sums + 16 * i);
  }
#pragma GCC unroll 1
  for (std::int64_t g = 0; g < p.cols / kActGroup; ++g) {
    __m512i acc[2][kBlocks][kRows];
    tile_dot_halves<kBlocks, kRows>(t, g, acc);
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 s0 = block_scales(p.block[b] + 2 * g * kRowBlock);
      const __m512 s1 = block_scales(p.block[b] + (2 * g + 1) * kRowBlock);
#pragma GCC unroll 8
      for (int c = 0; c < kRows; ++c) {
        const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[0][b][c]), s0);
        total[b][c] = _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[1][b][c]), s1, f),
                                      _mm512_set1_ps(t.scale[c * t.groups + g]), total[b][c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    _mm512_store_ps(sums + 16 * i, total[i / kRows][i % kRows]);
  }
}

// kRows activation rows from m on, against kBlocks row blocks of the panel.
template <WeightFormat kFormat, int kBlocks, int kRows>
inline void tile(const MatmulArgs& a, const Panel& p, std::int64_t m) {
  TileAt<kBlocks> t;
  t.stride = a.xq->stride;
  t.groups = a.xq->cols / kActGroup;
  t.q = a.xq->q + m * t.stride + p.k0;
  t.scale = a.xq->scale + m * t.groups + p.k0 / kActGroup;
  t.bias = a.xq->bias + m * t.groups + p.k0 / kActGroup;
  t.half_bias = a.xq->half_bias + 2 * (m * t.groups + p.k0 / kActGroup);
  for (int b = 0; b < kBlocks; ++b) t.w8[b] = p.bytes[b];
  float* sums = p.sums + (m - p.m0) * kBlocks * kRowBlock;
  float* out = a.out + m * a.ldo + p.out_row;
  if (p.last) {  // rows of `out` lie pages apart
    for (int c = 0; c < kRows; ++c) {
      for (int b = 0; b < kBlocks; ++b) prefetch(out + c * a.ldo + b * kRowBlock);
    }
  }
  if (p.first) {
    for (int i = 0; i < kBlocks * kRows; ++i) _mm512_store_ps(sums + 16 * i, _mm512_setzero_ps());
  }
  if constexpr (is_g32(kFormat)) {
    tile_blocks_of_32<kBlocks, kRows>(t, p, sums);
  } else if constexpr (kFormat == WeightFormat::q8) {
    tile_blocks_of_64<kBlocks, kRows>(t, p, sums);
  } else {
    tile_long_blocks<block_cols(kFormat) / kActGroup, kBlocks, kRows>(t, p, sums);
  }
  if (!p.last) return;
  for (int b = 0; b < kBlocks; ++b) {
    const __m512 row = _mm512_loadu_ps(p.row[b]);
    for (int c = 0; c < kRows; ++c) {
      _mm512_mask_storeu_ps(out + c * a.ldo + b * kRowBlock, p.mask[b],
                            _mm512_mul_ps(_mm512_load_ps(sums + (b * kRows + c) * 16), row));
    }
  }
}

// The last `count` <= kMost rows, fewer than a whole tile.
template <WeightFormat kFormat, int kBlocks, int kMost>
void last_rows(const MatmulArgs& a, const Panel& p, std::int64_t m, std::int64_t count) {
  if (count == kMost) return tile<kFormat, kBlocks, kMost>(a, p, m);
  if constexpr (kMost > 1) last_rows<kFormat, kBlocks, kMost - 1>(a, p, m, count);
}

template <WeightFormat kFormat, int kBlocks>
void all_rows(const MatmulArgs& a, const Panel& p) {
  constexpr int kTile = is_g32(kFormat)                   ? kTileColsG32
                        : block_cols(kFormat) == kBlockQ8 ? kTileCols
                                                          : kTileColsLong;
  std::int64_t m = p.m0;
  const std::int64_t end = p.m0 + p.rows;
  for (; m + 2 * kTile <= end || m + kTile == end; m += kTile)
    tile<kFormat, kBlocks, kTile>(a, p, m);
  // More than a tile is left as two of about one height: low ones spend more loads on each product.
  const std::int64_t half = end - m > kTile ? (end - m + 1) / 2 : 0;
  if (half > 0) last_rows<kFormat, kBlocks, kTile>(a, p, m, half);
  last_rows<kFormat, kBlocks, kTile - 1>(a, p, m + half, end - m - half);
}

// Unpacks the panel; fetches the codes `ahead`, and a line of the next row blocks' scales.
template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const MatmulArgs& a, const RowBlock (&rb)[kBlocks], std::int64_t ahead,
                  std::uint8_t* to, Panel* p) {
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  const __m512i levels = code_levels<kFormat, true>(a.w.format);
  for (int b = 0; b < kBlocks; ++b) {
    std::uint8_t* bytes = to + b * kPanelCols * kRowBlock;
    p->bytes[b] = bytes;
    p->block[b] = rb[b].block + p->k0 / block_cols(kFormat) * kRowBlock;
    for (std::int64_t k = p->k0; k < p->k0 + p->cols; k += 64) {
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[b].row) + to_next + k);
      unpack64<kFormat, true>(rb[b].codes + k / 64 * code_stride(kFormat), ahead,
                              rb[b].sub + k / kSubGroup * kRowBlock, levels,
                              bytes + (k - p->k0) * kRowBlock);
    }
  }
}

// kBlocks row blocks from `first_block` on in `count` panels side by side: each chunk of the
// activations meets all of them while it is in the second-level cache.
template <WeightFormat kFormat, int kBlocks>
void row_blocks(const MatmulArgs& a, std::int64_t m0, std::int64_t rows, std::int64_t first_block,
                std::int64_t count) {
  std::uint8_t* scratch = static_cast<std::uint8_t*>(a.scratch);
  float* sums = reinterpret_cast<float*>(scratch + 2 * kPanelCols * kRowBlock);
  const std::int64_t kp = a.xq->cols;
  Panel p;
  p.m0 = m0;
  p.rows = rows;
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    p.first = p.k0 == 0;
    p.last = p.k0 + p.cols == kp;
    for (std::int64_t i = 0; i < count; ++i) {
      RowBlock rb[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const std::int64_t index = first_block + i * kBlocks + b;
        rb[b] = row_block(a.w, index);
        p.row[b] = rb[b].row;
        p.mask[b] = row_mask(a.w, index);
      }
      p.out_row = (first_block + i * kBlocks) * kRowBlock;
      p.sums = sums + i * kBlocks * kRowBlock * p.rows;
      const std::int64_t ahead = panel_ahead<kFormat>(a, kBlocks, p.k0, kPanelCols, i, count);
      unpack_panel<kFormat, kBlocks>(a, rb, ahead, scratch, &p);
      all_rows<kFormat, kBlocks>(a, p);
    }
  }
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m <= 16) return few_rows<kFormat>(a);
  for (std::int64_t m0 = 0; m0 < a.m; m0 += kPassRows) {
    const std::int64_t rows = a.m - m0 < kPassRows ? a.m - m0 : kPassRows;
    std::int64_t b = a.block_begin;
    while (b + 2 <= a.block_end) {
      const std::int64_t left = (a.block_end - b) / 2;
      const std::int64_t count = left < kPanels ? left : kPanels;
      row_blocks<kFormat, 2>(a, m0, rows, b, count);
      b += 2 * count;
    }
    if (b < a.block_end) row_blocks<kFormat, 1>(a, m0, rows, b, 1);
  }
}

}  // namespace

void quantize_rows_avx512vnni(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                              const QuantizedRows* out) {
  quantize_all(x, ldx, m, k, *out);
}

void matmul_avx512vnni(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_avx512vnni(args);
}

}  // namespace musespark

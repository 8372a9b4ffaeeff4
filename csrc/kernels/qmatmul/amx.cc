// Quantized matmul with AMX int8 tiles (16 rows x 64 bytes). Bit-identical to scalar.cc.
//
// A quad-major panel of int8 weights is already what a B tile wants: 16 quads x (16 rows x 4 k) for
// 64 columns. Each tdpbssd gives the exact sums of one group of 64 columns, so every result tile is
// stored after one product and the scaling is done in vectors. (q4 and q6: of 256 columns, so that
// four products add up in the tile, and a step is 32 activation rows x two row blocks x 256
// columns: 16 products, 4 stores, 64 rows scaled.) A step is 16 activation rows x one row block x
// 256 columns:
//
//   4 groups x (store the last step's result, load A and B, product)
//   16 rows x (4 conversions, 4 fma, 1 fma)   of the step before
//
// so that neither unit waits for the other. Everything a step touches must stay in L1 (a store that
// misses it costs four times a product): the panel, two steps' result tiles, and the activations of
// one 256-column block, copied together because their rows lie a power of two apart.
// Formats with a scale per 32 columns need the sums of 32: their products have tiles of half the
// depth, and a step is 128 columns.
// Up to 48 rows take few_amx.inl, up to four few_avx512.inl and stream_avx512.inl; float weights go
// to the AVX-512 kernels.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/blocks_amx.inl"
#include "kernels/qmatmul/few_amx.inl"
#include "kernels/qmatmul/few_avx512.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/panel_amx.inl"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"
#include "kernels/qmatmul/wide_amx.inl"

namespace musespark {
namespace {

inline void store_tile(int g, std::int32_t* to) {
  switch (g) {  // tile registers are immediates
    case 0:
      _tile_stored(0, to, 64);
      break;
    case 1:
      _tile_stored(1, to + kTileInts, 64);
      break;
    case 2:
      _tile_stored(2, to + 2 * kTileInts, 64);
      break;
    default:
      _tile_stored(3, to + 3 * kTileInts, 64);
      break;
  }
}

// Where product i of kDepth columns finds its activations and its weights.
template <int kDepth>
constexpr std::int64_t x_at(int i) {
  return kDepth == 64 ? i * kTileBytes : i / 2 * kTileBytes + i % 2 * 32;
}
template <int kDepth>
constexpr std::int64_t w_at(int i) {
  return i * kDepth * kRowBlock;
}

// kCount products, one result register each; what they held goes to `before`.
template <int kDepth, int kCount>
inline void products(const std::int8_t* x, const std::int8_t* w, std::int32_t* before) {
  if (before) store_tile(0, before);
  _tile_zero(0);
  _tile_loadd(4, x, 64);
  _tile_loadd(6, w, 64);
  _tile_dpbssd(0, 4, 6);
  if constexpr (kCount > 1) {
    if (before) store_tile(1, before);
    _tile_zero(1);
    _tile_loadd(5, x + x_at<kDepth>(1), 64);
    _tile_loadd(7, w + w_at<kDepth>(1), 64);
    _tile_dpbssd(1, 5, 7);
  }
  if constexpr (kCount > 2) {
    if (before) store_tile(2, before);
    _tile_zero(2);
    _tile_loadd(4, x + x_at<kDepth>(2), 64);
    _tile_loadd(6, w + w_at<kDepth>(2), 64);
    _tile_dpbssd(2, 4, 6);
  }
  if constexpr (kCount > 3) {
    if (before) store_tile(3, before);
    _tile_zero(3);
    _tile_loadd(5, x + x_at<kDepth>(3), 64);
    _tile_loadd(7, w + w_at<kDepth>(3), 64);
    _tile_dpbssd(3, 5, 7);
  }
}

inline __m512 sums_as_floats(const Step& step, int product, std::int64_t r) {
  return _mm512_cvtepi32_ps(_mm512_load_si512(step.tiles + product * kTileInts + r * 16));
}

// total plus row r of a step: kGroups activation groups and their block scales.
template <WeightFormat kFormat, int kGroups>
inline __m512 add_step(const Step& step, std::int64_t r, const float* scale, const __m512* block,
                       __m512 total) {
  __m512 f;
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    const __m512 s = _mm512_set1_ps(scale[g]);
    if constexpr (is_g32(kFormat)) {
      f = _mm512_mul_ps(sums_as_floats(step, 2 * g, r), block[2 * g]);
      f = _mm512_fmadd_ps(sums_as_floats(step, 2 * g + 1, r), block[2 * g + 1], f);
      total = _mm512_fmadd_ps(f, s, total);
    } else {
      f = _mm512_mul_ps(sums_as_floats(step, g, r), s);
      total = _mm512_fmadd_ps(f, block[g], total);
    }
  }
  return total;
}

// Sums of a step, scaled and added.
template <WeightFormat kFormat, int kGroups>
inline void scale_step(const Call& call, const Panel& p, const Step& step) {
  constexpr int kScales = kGroups * kActGroup / block_cols(kFormat);
  const float* scale = call.a.xq->scale + step.m[0] * call.groups + p.k0 / kActGroup;
  float* out = call.a.out + step.m[0] * call.a.ldo + p.out_row + step.b * kRowBlock;
  const __m512 row = _mm512_loadu_ps(p.row[step.b]);
  __m512 block[kScales];
  for (int g = 0; g < kScales; ++g) {
    block[g] = block_scales(p.block[step.b] + g * kRowBlock);
  }
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < call.rows; ++r) {
    __m512 total = p.first ? _mm512_setzero_ps() : _mm512_load_ps(step.sums + r * 16);
    total = add_step<kFormat, kGroups>(step, r, scale + r * call.groups, block, total);
    if (p.last) {
      _mm512_mask_storeu_ps(out + r * call.a.ldo, p.mask[step.b], _mm512_mul_ps(total, row));
    } else {
      _mm512_store_ps(step.sums + r * 16, total);
    }
  }
}

// One panel of kGroups activation groups against the activation rows [m0, m0 + rows).
template <WeightFormat kFormat, int kBlocks, int kGroups>
void all_rows(const Call& call, const Panel& p, std::int64_t m0, std::int64_t rows) {
  const std::int64_t m_tiles = (rows + kTileRows - 1) / kTileRows;
  constexpr std::int64_t kXBytes = kStepGroups * kTileBytes;
  constexpr int kDepth = product_cols(kFormat), kProducts = kGroups * kActGroup / kDepth;
  Step steps[kLag + 1] = {};
  std::int64_t count = 0;
  gather_activations(call, p, call.tile_start(m0), kGroups, call.x);
  for (std::int64_t tile = 0; tile < m_tiles; ++tile) {
    if (tile + 1 < m_tiles) {
      gather_activations(call, p, call.tile_start(m0 + (tile + 1) * kTileRows), kGroups,
                         call.x + (tile + 1) % 2 * kXBytes);
    }
    compiler_barrier();
    for (int b = 0; b < kBlocks; ++b, ++count) {
      Step& step = steps[count % (kLag + 1)];
      step.tiles = call.tiles + count % (kLag + 1) * kStepGroups * kTileInts;
      step.m[0] = call.tile_start(m0 + tile * kTileRows);
      step.sums = call.sums + (tile * kBlocks + b) * kTileInts;
      step.b = b;
      if (p.last) {  // rows of `out` lie pages apart
        float* out = call.a.out + step.m[0] * call.a.ldo + p.out_row + b * kRowBlock;
        for (std::int64_t r = 0; r < call.rows; ++r) prefetch(out + r * call.a.ldo);
      }
      products<kDepth, kProducts>(call.x + tile % 2 * kXBytes, p.w8 + b * kPanelCols * kRowBlock,
                                  count > 0 ? steps[(count - 1) % (kLag + 1)].tiles : nullptr);
      compiler_barrier();
      if (count >= kLag) scale_step<kFormat, kGroups>(call, p, steps[(count - kLag) % (kLag + 1)]);
    }
  }
  for (int i = 0; i < kProducts; ++i) store_tile(i, steps[(count - 1) % (kLag + 1)].tiles);
  compiler_barrier();
  for (std::int64_t i = count < kLag ? 0 : count - kLag; i < count; ++i) {
    scale_step<kFormat, kGroups>(call, p, steps[i % (kLag + 1)]);
  }
}

template <WeightFormat kFormat, int kBlocks>
void all_groups(const Call& call, const Panel& p, std::int64_t m0, std::int64_t rows) {
  if constexpr (has_sub(kFormat)) {
    const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows, even = tiles / 2 * 2;
    if (even > 0) rows_of_blocks<2, kBlocks>(call, p, m0, 0, even);
    if (even < tiles) rows_of_blocks<1, kBlocks>(call, p, m0, even, 1);
  } else {
    const std::int64_t groups = p.cols / kActGroup;
    if (groups == 1) return all_rows<kFormat, kBlocks, 1>(call, p, m0, rows);
    if (groups == 2) return all_rows<kFormat, kBlocks, 2>(call, p, m0, rows);
    if constexpr (!is_g32(kFormat)) {
      if (groups == 3) return all_rows<kFormat, kBlocks, 3>(call, p, m0, rows);
      all_rows<kFormat, kBlocks, 4>(call, p, m0, rows);
    }
  }
}

// kBlocks row blocks from `first_block` on in `count` panels side by side: each chunk of the
// activations meets all of them while it is in the second-level cache.
template <WeightFormat kFormat, int kBlocks>
void row_blocks(Call& call, std::int64_t m0, std::int64_t rows, std::int64_t first_block,
                std::int64_t count) {
  const MatmulArgs& a = call.a;
  const std::int64_t kp = a.xq->cols;
  constexpr std::int64_t kCols = panel_cols(kFormat);
  float* const sums = call.sums;
  Panel p;
  const std::int64_t panel_sums = (rows + kTileRows - 1) / kTileRows * kBlocks * kTileInts;
  for (p.k0 = 0; p.k0 < kp; p.k0 += kCols) {
    p.cols = kp - p.k0 < kCols ? kp - p.k0 : kCols;
    p.first = p.k0 == 0;
    p.last = p.k0 + p.cols == kp;
    if constexpr (has_sub(kFormat)) {  // once for all panels
      for (std::int64_t m = 0; m < rows; m += kTileRows) {
        gather_activations(call, p, call.tile_start(m0 + m), p.cols / kActGroup,
                           call.x + m * kPanelCols);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      RowBlock rb[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const std::int64_t index = first_block + i * kBlocks + b;
        rb[b] = row_block(a.w, index);
        p.row[b] = rb[b].row;
        p.mask[b] = row_mask(a.w, index);
      }
      p.out_row = (first_block + i * kBlocks) * kRowBlock;
      call.sums = sums + i * panel_sums;
      const std::int64_t ahead = panel_ahead<kFormat>(a, kBlocks, p.k0, kCols, i, count);
      unpack_panel<kFormat, kBlocks>(a, rb, ahead, call.panel, &p);
      all_groups<kFormat, kBlocks>(call, p, m0, rows);
    }
  }
  call.sums = sums;
}

template <WeightFormat kFormat>
void many_rows(Call& call) {
  const MatmulArgs& a = call.a;
  for (std::int64_t m0 = 0; m0 < a.m; m0 += kPassRows) {
    const std::int64_t rows = a.m - m0 < kPassRows ? a.m - m0 : kPassRows;
    std::int64_t b = a.block_begin;
    for (; b + 4 * kPanels <= a.block_end; b += 4 * kPanels) {
      row_blocks<kFormat, 4>(call, m0, rows, b, kPanels);
    }
    for (; b + 4 <= a.block_end; b += 4) row_blocks<kFormat, 4>(call, m0, rows, b, 1);
    for (; b + 2 <= a.block_end; b += 2) row_blocks<kFormat, 2>(call, m0, rows, b, 1);
    if (b < a.block_end) row_blocks<kFormat, 1>(call, m0, rows, b, 1);
  }
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m <= 4) return few_rows<kFormat>(a);
  Call call(a);
  configure_tiles(call.rows, product_cols(kFormat));
  if (a.m <= few_rows_most(kFormat)) {
    few_rows_amx<kFormat>(a);
    _tile_release();
    return;
  }
  if constexpr (kFormat == WeightFormat::q8g1024h) {
    matmul_wide(a);
  } else {
    many_rows<kFormat>(call);
  }
  _tile_release();
}

}  // namespace

void matmul_amx(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_avx512vnni(args);
}

}  // namespace musespark

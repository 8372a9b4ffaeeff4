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
#include "kernels/qmatmul/few_amx.inl"
#include "kernels/qmatmul/few_avx512.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 256;  // room: 64 rows x 256 bytes = 16 KiB of L1
constexpr int kMaxBlocks = 4;
constexpr std::int64_t kPanels = 2;      // of kMaxBlocks that share a chunk of activations
constexpr std::int64_t kPassRows = 512;  // activation rows per unpacked panel
constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 1024;
constexpr int kStepGroups = 4;  // products per step
constexpr std::int64_t kTileInts = 256;
constexpr int kLag = 1;       // steps between products and scaling
constexpr int kBlockLag = 2;  // the same where products add up in the tiles

// Columns of one product, and of a panel.
constexpr int product_cols(WeightFormat format) { return is_g32(format) ? 32 : 64; }
constexpr std::int64_t panel_cols(WeightFormat format) {
  return kStepGroups * product_cols(format);
}

// Tile registers 0..3: results, 4 and 5: `rows` activation rows, 6 and 7: weights; products of
// `depth` columns.
void configure_tiles(std::int64_t rows, int depth) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? depth : 64);
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : depth / 4);
  }
  // GCC 12's intrinsic names only the first bytes as read; this keeps the stores of the rest.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// A chunk of columns of kBlocks row blocks against one pass of activation rows.
struct Panel {
  const std::int8_t* w8;                   // [blocks][kPanelCols / 64][16 quads][16 rows][4 k]
  const std::uint16_t* block[kMaxBlocks];  // block scales from the chunk's first block on
  const float* row[kMaxBlocks];
  __mmask16 mask[kMaxBlocks];
  std::int64_t out_row;
  std::int64_t k0, cols;
  bool first, last;
};

class Call {  // what is the same for a whole call
 public:
  Call(const MatmulArgs& args) : a(args) {
    groups = a.xq->cols / kActGroup;
    rows = a.m < kTileRows ? a.m : kTileRows;
    panel = static_cast<std::int8_t*>(a.scratch);
    x = panel + kMaxBlocks * kPanelCols * kRowBlock;
    tiles = reinterpret_cast<std::int32_t*>(x + kPassRows * kPanelCols);
    sums = reinterpret_cast<float*>(tiles + (kBlockLag + 1) * kStepGroups * kTileInts);
  }

  // First activation row of a tile; the last one overlaps its neighbour rather than end early.
  std::int64_t tile_start(std::int64_t m) const {
    return a.m < kTileRows || m + kTileRows <= a.m ? m : a.m - kTileRows;
  }

  const MatmulArgs& a;
  std::int64_t groups;  // of a whole row
  std::int64_t rows;    // of a tile of activations
  std::int8_t* panel;
  std::int8_t* x;       // [kStepGroups][16][64] of the panel's columns, for each tile of the pass;
                        // where products do not add up, of this and the next tile
  std::int32_t* tiles;  // [lag + 1][4][16][16]
  float* sums;          // of the panel: [m tiles][blocks][16][16]
};

// What the scaling of a step needs.
struct Step {
  std::int32_t* tiles;
  std::int64_t m[2];  // first activation row of each tile of them
  float* sums;        // [16][16]
  int b;              // row block of the panel
};

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

// The panel's columns of the activation rows from m on, tile by tile.
inline void gather_activations(const Call& call, const Panel& p, std::int64_t m,
                               std::int64_t groups, std::int8_t* to) {
  const std::int64_t stride = call.a.xq->stride;
  const std::int8_t* from = call.a.xq->q + m * stride + p.k0;
  for (std::int64_t r = 0; r < call.rows; ++r) {
#pragma GCC unroll 4
    for (std::int64_t g = 0; g < groups; ++g) {
      _mm512_store_si512(to + g * kTileBytes + r * 64,
                         _mm512_load_si512(from + r * stride + g * 64));
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

// ---- a scale for 256 columns: their products add up in the result tiles
// --------------------------

// Result tile mi * 2 + bi is that of activations 4 + mi and weights 6 + bi: kM * kB of them.
template <int kM, int kB>
inline void store_results(std::int32_t* to) {
  _tile_stored(0, to, 64);
  if constexpr (kB > 1) _tile_stored(1, to + kTileInts, 64);
  if constexpr (kM > 1) _tile_stored(2, to + 2 * kTileInts, 64);
  if constexpr (kM > 1 && kB > 1) _tile_stored(3, to + 3 * kTileInts, 64);
}

template <int kM, int kB>
inline void load_operands(const std::int8_t* x, const std::int8_t* w) {
  _tile_loadd(4, x, 64);
  _tile_loadd(6, w, 64);
  if constexpr (kB > 1) _tile_loadd(7, w + kPanelCols * kRowBlock, 64);
  if constexpr (kM > 1) _tile_loadd(5, x + kStepGroups * kTileBytes, 64);
}

// The products of `groups` groups of 64 columns; what the result tiles held goes to `before`.
template <int kM, int kB>
inline void block_products(const std::int8_t* x, const std::int8_t* w, std::int64_t groups,
                           std::int32_t* before) {
  load_operands<kM, kB>(x, w);
  if (before) _tile_stored(0, before, 64);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  if constexpr (kB > 1) {
    if (before) _tile_stored(1, before + kTileInts, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 4, 7);
  }
  if constexpr (kM > 1) {
    if (before) _tile_stored(2, before + 2 * kTileInts, 64);
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
  }
  if constexpr (kM > 1 && kB > 1) {
    if (before) _tile_stored(3, before + 3 * kTileInts, 64);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
  for (std::int64_t g = 1; g < groups; ++g) {
    load_operands<kM, kB>(x + g * kTileBytes, w + g * kTileBytes);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kB > 1) _tile_dpbssd(1, 4, 7);
    if constexpr (kM > 1) _tile_dpbssd(2, 5, 6);
    if constexpr (kM > 1 && kB > 1) _tile_dpbssd(3, 5, 7);
  }
}

// The result tiles of a step, scaled and added. step.b: its first row block.
template <int kM, int kB, int kBlocks>
inline void scale_block(const Call& call, const Panel& p, const Step& step) {
  for (int i = 0; i < kM * kB; ++i) {
    const int b = step.b + i % kB;
    const std::int64_t m = step.m[i / kB];
    const std::int32_t* tile = step.tiles + (i / kB * 2 + i % kB) * kTileInts;
    float* sums = step.sums + (i / kB * kBlocks + i % kB) * kTileInts;
    const float* scale = call.a.xq->scale + m * call.groups + p.k0 / kActGroup;
    float* out = call.a.out + m * call.a.ldo + p.out_row + b * kRowBlock;
    const __m512 row = _mm512_loadu_ps(p.row[b]), block = block_scales(p.block[b]);
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < call.rows; ++r) {
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_load_si512(tile + r * 16));
      const __m512 f = _mm512_mul_ps(exact, _mm512_set1_ps(scale[r * call.groups]));
      __m512 total = p.first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * 16);
      total = _mm512_fmadd_ps(f, block, total);
      if (p.last) {
        _mm512_mask_storeu_ps(out + r * call.a.ldo, p.mask[b], _mm512_mul_ps(total, row));
      } else {
        _mm512_store_ps(sums + r * 16, total);
      }
    }
  }
}

// kM tiles of activation rows at a time, `count` of them from tile `first` of the pass on.
template <int kM, int kBlocks>
void rows_of_blocks(const Call& call, const Panel& p, std::int64_t m0, std::int64_t first,
                    std::int64_t count) {
  constexpr int kB = kBlocks > 1 ? 2 : 1;
  constexpr int kKept = kBlockLag + 1;
  const std::int64_t groups = p.cols / kActGroup, steps = count / kM * (kBlocks / kB);
  Step kept[kKept] = {};
  std::int64_t n = 0;
  const auto start = [&](std::int64_t tile) { return call.tile_start(m0 + tile * kTileRows); };
  for (std::int64_t t = first; t < first + count; t += kM) {
    for (int b = 0; b < kBlocks; b += kB, ++n) {
      Step& step = kept[n % kKept];
      step.tiles = call.tiles + n % kKept * 4 * kTileInts;
      for (int i = 0; i < kM; ++i) step.m[i] = start(t + i);
      step.sums = call.sums + (t * kBlocks + b) * kTileInts;
      step.b = b;
      if (p.last) {  // rows of `out` lie pages apart
        for (int i = 0; i < kM; ++i) {
          float* out = call.a.out + step.m[i] * call.a.ldo + p.out_row + b * kRowBlock;
          for (std::int64_t r = 0; r < call.rows; ++r) prefetch(out + r * call.a.ldo);
        }
      }
      const std::int8_t* x = call.x + t * kTileRows * kPanelCols;
      compiler_barrier();
      block_products<kM, kB>(x, p.w8 + b * kPanelCols * kRowBlock, groups,
                             n > 0 ? kept[(n - 1) % kKept].tiles : nullptr);
      compiler_barrier();
      if (n >= kBlockLag) scale_block<kM, kB, kBlocks>(call, p, kept[(n - kBlockLag) % kKept]);
    }
  }
  store_results<kM, kB>(kept[(n - 1) % kKept].tiles);
  compiler_barrier();
  for (std::int64_t i = n < kBlockLag ? 0 : n - kBlockLag; i < steps; ++i) {
    scale_block<kM, kB, kBlocks>(call, p, kept[i % kKept]);
  }
}

// Unpacks the panel; fetches the codes `ahead`, and a line of the next row blocks' scales.
template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const MatmulArgs& a, const RowBlock (&rb)[kBlocks], std::int64_t ahead,
                  std::int8_t* to, Panel* p) {
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  p->w8 = to;
  const __m512i levels = code_levels<kFormat, false>(a.w.format);
  for (int b = 0; b < kBlocks; ++b) {
    p->block[b] = rb[b].block + p->k0 / block_cols(kFormat) * kRowBlock;
  }
  for (std::int64_t k = p->k0; k < p->k0 + p->cols; k += 64) {
    for (int b = 0; b < kBlocks; ++b) {
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[b].row) + to_next + k);
      unpack64<kFormat, false>(
          rb[b].codes + k / 64 * code_stride(kFormat), ahead, rb[b].sub + k / kSubGroup * kRowBlock,
          levels, reinterpret_cast<std::uint8_t*>(to) + (b * kPanelCols + k - p->k0) * kRowBlock);
    }
  }
  compiler_barrier();
}

template <WeightFormat kFormat, int kBlocks>
void all_groups(const Call& call, const Panel& p, std::int64_t m0, std::int64_t rows) {
  if constexpr (has_sub(kFormat)) {
    const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows, even = tiles / 2 * 2;
    if (even > 0) rows_of_blocks<2, kBlocks>(call, p, m0, 0, even);
    if (even < tiles) rows_of_blocks<1, kBlocks>(call, p, m0, even, 1);
    return;
  }
  const std::int64_t groups = p.cols / kActGroup;
  if (groups == 1) return all_rows<kFormat, kBlocks, 1>(call, p, m0, rows);
  if (groups == 2) return all_rows<kFormat, kBlocks, 2>(call, p, m0, rows);
  if constexpr (!is_g32(kFormat)) {
    if (groups == 3) return all_rows<kFormat, kBlocks, 3>(call, p, m0, rows);
    all_rows<kFormat, kBlocks, 4>(call, p, m0, rows);
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
void matmul_quantized(const MatmulArgs& a) {
  if (a.m <= 4) return few_rows<kFormat>(a);
  Call call(a);
  configure_tiles(call.rows, product_cols(kFormat));
  if (a.m <= few_rows_most(kFormat)) {
    few_rows_amx<kFormat>(a);
    _tile_release();
    return;
  }
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
  _tile_release();
}

}  // namespace

void matmul_amx(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_avx512vnni(args);
}

}  // namespace musespark

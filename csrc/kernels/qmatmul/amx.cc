// Quantized matmul with AMX int8 tiles (16 rows x 64 bytes). Bit-identical to scalar.cc.
//
// A quad-major panel of int8 weights is already what a B tile wants: 16 quads x (16 rows x 4 k) for 64
// columns. A is 16 activation rows as they lie. Each tdpbssd gives the exact sums of one group of 64
// columns, so every result tile is stored after one product and the scaling is done in vectors:
//
//   for every 256 columns and 2 x 2 tiles (32 activation rows x 32 weight rows):
//     4 groups x (load A0 A1 B0 B1, 4 products, store 4 result tiles)       256 cycles of the tile unit
//     4 tiles x 16 rows x (4 conversions, 4 fma, 1 fma)                     288 cycles of two ports
//
// The scaling of one such job is interleaved with the products of the next, so that both units work.
// M = 1 and float weights go to the AVX-512 kernels.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 1024;   // 32 x 1024 bytes
constexpr std::int64_t kPassRows = 512;     // activation rows per unpacked panel
constexpr std::int64_t kTileRows = 16;
constexpr int kJobGroups = 4;               // groups of 64 columns per job
constexpr std::int64_t kTileInts = 256;
constexpr std::int64_t kJobInts = kJobGroups * 4 * kTileInts;   // 16 KiB of result tiles

inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

constexpr std::int64_t block_cols(WeightFormat format) {
  return format == WeightFormat::q8 ? kBlockQ8 : kBlockQ4;
}

// Tile registers 0..3: results, 4 and 5: `rows` activation rows, 6 and 7: weights.
void configure_tiles(std::int64_t rows) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : kTileRows);
  }
  _tile_loadconfig(&config);
}

// A chunk of columns of kBlocks row blocks against one pass of activation rows.
struct Panel {
  const std::int8_t* w8[2];        // [groups][16 quads][16 rows][4 k]
  const std::uint16_t* block[2];   // block scales from the chunk's first block on
  const float* row[2];
  __mmask16 mask[2];
  std::int64_t out_row;
  std::int64_t k0, cols;
  bool first, last;
};

// 256 columns of up to 2 x 2 tiles: what the scaling needs after the products are stored.
struct Job {
  const std::int32_t* tiles;       // [group][m tile][block][16][16]
  std::int64_t m[2];               // first activation row of each tile
  float* sums[2];                  // [block][16][16] of each tile
  int m_tiles;
  std::int64_t group;              // first group, counted from column 0
  int groups;                      // 1 .. 4
  std::int64_t block;              // first block, counted from the panel's first
  bool first, last;                // of the whole row
};

class Call {   // what is the same for a whole call
 public:
  Call(const MatmulArgs& args) : a(args) {
    groups = a.xq->cols / kActGroup;
    rows = a.m < kTileRows ? a.m : kTileRows;
    std::uint8_t* p = static_cast<std::uint8_t*>(a.scratch);
    panel = reinterpret_cast<std::int8_t*>(p);
    tiles = reinterpret_cast<std::int32_t*>(p + 2 * kPanelCols * kRowBlock);
    sums = reinterpret_cast<float*>(tiles + 2 * kJobInts);
  }

  // First activation row of a tile; the last one overlaps its neighbour rather than end early.
  std::int64_t tile_start(std::int64_t m) const {
    return a.m < kTileRows || m + kTileRows <= a.m ? m : a.m - kTileRows;
  }

  const MatmulArgs& a;
  std::int64_t groups;     // of a whole row
  std::int64_t rows;       // of a tile of activations
  std::int8_t* panel;
  std::int32_t* tiles;     // two jobs' result tiles
  float* sums;             // [m tiles][kBlocks][16][16]
};

// Products of one group into result tiles t0 (m tile 0: block 0, block 1) and t1 (m tile 1).
template <int kBlocks, int kMTiles>
inline void products(const std::int8_t* const* x, std::int64_t kp, const std::int8_t* const* w,
                     std::int32_t* to) {
  constexpr int kRowBytes = 64;
  _tile_zero(0);
  _tile_loadd(6, w[0], kRowBytes);
  _tile_loadd(4, x[0], kp);
  _tile_dpbssd(0, 4, 6);
  if constexpr (kBlocks == 2) {
    _tile_zero(1);
    _tile_loadd(7, w[1], kRowBytes);
    _tile_dpbssd(1, 4, 7);
  }
  if constexpr (kMTiles == 2) {
    _tile_zero(2);
    _tile_loadd(5, x[1], kp);
    _tile_dpbssd(2, 5, 6);
    if constexpr (kBlocks == 2) {
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, to, kRowBytes);
  if constexpr (kBlocks == 2) _tile_stored(1, to + kTileInts, kRowBytes);
  if constexpr (kMTiles == 2) {
    _tile_stored(2, to + kBlocks * kTileInts, kRowBytes);
    if constexpr (kBlocks == 2) _tile_stored(3, to + 3 * kTileInts, kRowBytes);
  }
}

// The scaling of result tile (t, b) of a job.
template <WeightFormat kFormat, int kBlocks, int kGroups>
inline void scale_tile_groups(const Call& call, const Panel& p, const Job& job, int t, int b) {
  constexpr bool kBlockIsGroup = kFormat == WeightFormat::q8;
  const float* scale = call.a.xq->scale + job.m[t] * call.groups + job.group;
  const std::int32_t* tile = job.tiles + (t * kBlocks + b) * kTileInts;
  constexpr std::int64_t kStep = 4 * kTileInts;   // one group's tiles
  float* sums = job.sums[t] + b * kTileInts;
  float* out = call.a.out + job.m[t] * call.a.ldo + p.out_row + b * kRowBlock;
  const __m512 row = _mm512_loadu_ps(p.row[b]);
  __m512 block[kBlockIsGroup ? kGroups : 1];
  for (int g = 0; g < (kBlockIsGroup ? kGroups : 1); ++g) {
    block[g] = _mm512_cvtph_ps(_mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(p.block[b] + (job.block + g) * kRowBlock)));
  }
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < call.rows; ++r) {
    __m512 total = job.first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * 16);
    __m512 f = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(tile + g * kStep + r * 16));
      const __m512 s = _mm512_set1_ps(scale[r * call.groups + g]);
      f = _mm512_fmadd_ps(sum, s, kBlockIsGroup ? _mm512_setzero_ps() : f);
      if constexpr (kBlockIsGroup) total = _mm512_fmadd_ps(f, block[g], total);
    }
    if constexpr (!kBlockIsGroup) total = _mm512_fmadd_ps(f, block[0], total);
    if (job.last) {
      _mm512_mask_storeu_ps(out + r * call.a.ldo, p.mask[b], _mm512_mul_ps(total, row));
    } else {
      _mm512_store_ps(sums + r * 16, total);
    }
  }
}

template <WeightFormat kFormat, int kBlocks>
inline void scale_tile(const Call& call, const Panel& p, const Job& job, int index) {
  const int t = index / kBlocks, b = index % kBlocks;
  if (t >= job.m_tiles) return;
  switch (job.groups) {
    case 4: return scale_tile_groups<kFormat, kBlocks, 4>(call, p, job, t, b);
    case 3: return scale_tile_groups<kFormat, kBlocks, 3>(call, p, job, t, b);
    case 2: return scale_tile_groups<kFormat, kBlocks, 2>(call, p, job, t, b);
    default: return scale_tile_groups<kFormat, kBlocks, 1>(call, p, job, t, b);
  }
}

// The products of a job; after each group, one tile of the job before is scaled.
template <WeightFormat kFormat, int kBlocks>
inline void run_job(const Call& call, const Panel& p, const Job& job, const Job* before) {
  const std::int64_t kp = call.a.xq->cols;
  std::int32_t* to = const_cast<std::int32_t*>(job.tiles);
  for (int g = 0; g < kJobGroups; ++g) {
    if (g < job.groups) {
      const std::int64_t k = (job.group + g) * kActGroup;
      const std::int8_t* x[2] = {call.a.xq->q + job.m[0] * kp + k, call.a.xq->q + job.m[1] * kp + k};
      const std::int8_t* w[2] = {p.w8[0] + (k - p.k0) * kRowBlock, p.w8[1] + (k - p.k0) * kRowBlock};
      if (job.m_tiles == 2) {
        products<kBlocks, 2>(x, kp, w, to + g * 4 * kTileInts);
      } else {
        products<kBlocks, 1>(x, kp, w, to + g * 4 * kTileInts);
      }
    }
    compiler_barrier();
    if (before && g < 2 * kBlocks) scale_tile<kFormat, kBlocks>(call, p, *before, g);
  }
}

// One panel against the activation rows [m0, m0 + rows).
template <WeightFormat kFormat, int kBlocks>
void all_rows(const Call& call, const Panel& p, std::int64_t m0, std::int64_t rows) {
  constexpr std::int64_t kJobCols = kJobGroups * kActGroup;
  const std::int64_t m_tiles = (rows + kTileRows - 1) / kTileRows;
  Job jobs[2];
  int count = 0;
  for (std::int64_t tile = 0; tile < m_tiles; tile += 2) {
    for (std::int64_t k = 0; k < p.cols; k += kJobCols) {
      Job& job = jobs[count % 2];
      job.tiles = call.tiles + count % 2 * kJobInts;
      job.m_tiles = tile + 1 < m_tiles ? 2 : 1;
      for (int t = 0; t < 2; ++t) {
        const std::int64_t at = t < job.m_tiles ? tile + t : tile;
        job.m[t] = call.tile_start(m0 + at * kTileRows);
        job.sums[t] = call.sums + at * kBlocks * kTileInts;
      }
      job.group = (p.k0 + k) / kActGroup;
      job.groups = static_cast<int>((p.cols - k < kJobCols ? p.cols - k : kJobCols) / kActGroup);
      job.block = k / block_cols(kFormat);
      job.first = p.first && k == 0;
      job.last = p.last && k + kJobCols >= p.cols;
      run_job<kFormat, kBlocks>(call, p, job, count > 0 ? &jobs[(count + 1) % 2] : nullptr);
      ++count;
    }
  }
  for (int i = 0; i < 2 * kBlocks; ++i) {
    scale_tile<kFormat, kBlocks>(call, p, jobs[(count + 1) % 2], i);
  }
}

template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const RowBlock (&rb)[kBlocks], std::int8_t* to, Panel* p) {
  for (int b = 0; b < kBlocks; ++b) {
    std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(to) + b * kPanelCols * kRowBlock;
    p->w8[b] = reinterpret_cast<std::int8_t*>(bytes);
    p->block[b] = rb[b].block + p->k0 / block_cols(kFormat) * kRowBlock;
    for (std::int64_t k = p->k0; k < p->k0 + p->cols; k += 64) {
      const std::uint8_t* codes = rb[b].codes + k / 64 * code_stride(kFormat);
      for (int line = 0; line < code_stride(kFormat); line += 64) {
        prefetch(codes + kPanelCols / 64 * code_stride(kFormat) + line);
      }
      unpack64<kFormat, false>(codes, rb[b].sub + k / kSubGroup * kRowBlock,
                               bytes + (k - p->k0) * kRowBlock);
    }
  }
  if constexpr (kBlocks == 1) p->w8[1] = p->w8[0];
  compiler_barrier();
}

template <WeightFormat kFormat, int kBlocks>
void row_blocks(const Call& call, std::int64_t first_block) {
  const MatmulArgs& a = call.a;
  const std::int64_t kp = a.xq->cols;
  RowBlock rb[kBlocks];
  Panel p;
  for (int b = 0; b < kBlocks; ++b) {
    rb[b] = row_block(a.w, first_block + b);
    p.row[b] = rb[b].row;
    const std::int64_t left = a.w.rows - (first_block + b) * kRowBlock;
    p.mask[b] = left >= kRowBlock ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  }
  p.out_row = first_block * kRowBlock;
  for (std::int64_t m0 = 0; m0 < a.m; m0 += kPassRows) {
    const std::int64_t rows = a.m - m0 < kPassRows ? a.m - m0 : kPassRows;
    for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
      p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
      p.first = p.k0 == 0;
      p.last = p.k0 + p.cols == kp;
      unpack_panel<kFormat, kBlocks>(rb, call.panel, &p);
      all_rows<kFormat, kBlocks>(call, p, m0, rows);
    }
  }
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  const Call call(a);
  configure_tiles(call.rows);
  std::int64_t b = a.block_begin;
  for (; b + 2 <= a.block_end; b += 2) row_blocks<kFormat, 2>(call, b);
  if (b < a.block_end) row_blocks<kFormat, 1>(call, b);
  _tile_release();
}

}  // namespace

void matmul_amx(const MatmulArgs* args) {
  if (args->m == 1) return matmul_avx512vnni(args);
  switch (args->w.format) {
    case WeightFormat::q8: return matmul_quantized<WeightFormat::q8>(*args);
    case WeightFormat::q6: return matmul_quantized<WeightFormat::q6>(*args);
    case WeightFormat::q4: return matmul_quantized<WeightFormat::q4>(*args);
    default: return matmul_avx512vnni(args);
  }
}

}  // namespace musespark

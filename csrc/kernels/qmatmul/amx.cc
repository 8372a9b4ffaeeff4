// Quantized matmul with AMX int8 tiles (16 rows x 64 bytes). Bit-identical to scalar.cc.
//
// A quad-major panel of int8 weights is already what a B tile wants: 16 quads x (16 rows x 4 k) for 64
// columns. A is 16 activation rows as they lie. Each tdpbssd gives the exact sums of one group of 64
// columns, so every result tile is stored after one product and the scaling is done in vectors. A job
// is 16 activation rows x 4 row blocks x 256 columns:
//
//   4 groups x (load A; 4 x: store the last result, load B, product)       16 products
//   4 tiles x 16 rows x (4 conversions, 4 fma, 1 fma)                      576 vector operations
//
// The scaling of one job is interleaved with the products of the next, so that both units work.
// M = 1 and float weights go to the AVX-512 kernels.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 512;    // 64 rows x 512 bytes = 32 KiB of L1
constexpr int kMaxBlocks = 4;
constexpr std::int64_t kPassRows = 512;     // activation rows per unpacked panel
constexpr std::int64_t kTileRows = 16;
constexpr int kJobGroups = 4;               // groups of 64 columns per job
constexpr std::int64_t kTileInts = 256;
constexpr std::int64_t kJobInts = kJobGroups * kMaxBlocks * kTileInts;   // 16 KiB of result tiles

inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

constexpr std::int64_t block_cols(WeightFormat format) {
  return format == WeightFormat::q8 ? kBlockQ8 : kBlockQ4;
}

// Tile registers 0..3: results, 4: `rows` activation rows, 5 and 6: weights.
void configure_tiles(std::int64_t rows) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = static_cast<std::uint8_t>(i < 5 ? rows : kTileRows);
  }
  _tile_loadconfig(&config);
}

// A chunk of columns of kBlocks row blocks against one pass of activation rows.
struct Panel {
  const std::int8_t* w8;           // [blocks][kPanelCols / 64][16 quads][16 rows][4 k]
  const std::uint16_t* block[kMaxBlocks];   // block scales from the chunk's first block on
  const float* row[kMaxBlocks];
  __mmask16 mask[kMaxBlocks];
  std::int64_t out_row;
  std::int64_t k0, cols;
  std::int64_t block_cols;
  bool first, last;
};

// 256 columns of one tile of activation rows: what the scaling needs after the products are stored.
struct Job {
  std::int32_t* tiles;             // [group][block][16][16]
  std::int64_t m;                  // first activation row
  float* sums;                     // [block][16][16]
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
    tiles = reinterpret_cast<std::int32_t*>(p + kMaxBlocks * kPanelCols * kRowBlock);
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
  float* sums;             // [m tiles][blocks][16][16]
};

// Stores result tile b.
inline void store_tile(int b, std::int32_t* to) {
  switch (b) {   // tile registers are immediates
    case 0: _tile_stored(0, to, 64); break;
    case 1: _tile_stored(1, to + kTileInts, 64); break;
    case 2: _tile_stored(2, to + 2 * kTileInts, 64); break;
    default: _tile_stored(3, to + 3 * kTileInts, 64);
  }
}

// Products of one group. What the result tiles held goes to `before` first: those products are long
// done then, and the stores do not wait for them.
template <int kBlocks>
inline void products(const std::int8_t* x, std::int64_t kp, const std::int8_t* w,
                     std::int32_t* before) {
  constexpr std::int64_t kNext = kPanelCols * kRowBlock;   // the next row block's tile
  _tile_loadd(4, x, kp);
  if (before) store_tile(0, before);
  _tile_zero(0);
  _tile_loadd(5, w, 64);
  _tile_dpbssd(0, 4, 5);
  if constexpr (kBlocks > 1) {
    if (before) store_tile(1, before);
    _tile_zero(1);
    _tile_loadd(6, w + kNext, 64);
    _tile_dpbssd(1, 4, 6);
  }
  if constexpr (kBlocks > 2) {
    if (before) store_tile(2, before);
    _tile_zero(2);
    _tile_loadd(5, w + 2 * kNext, 64);
    _tile_dpbssd(2, 4, 5);
    if (before) store_tile(3, before);
    _tile_zero(3);
    _tile_loadd(6, w + 3 * kNext, 64);
    _tile_dpbssd(3, 4, 6);
  }
}

// The scaling of result tile b of a job.
template <WeightFormat kFormat, int kGroups>
inline void scale_tile_groups(const Call& call, const Panel& p, const Job& job, int b) {
  constexpr bool kBlockIsGroup = kFormat == WeightFormat::q8;
  constexpr int kScales = kBlockIsGroup ? kGroups : 1;
  constexpr std::int64_t kStep = kMaxBlocks * kTileInts;   // one group's tiles
  const float* scale = call.a.xq->scale + job.m * call.groups + job.group;
  const std::int32_t* tile = job.tiles + b * kTileInts;
  float* sums = job.sums + b * kTileInts;
  float* out = call.a.out + job.m * call.a.ldo + p.out_row + b * kRowBlock;
  const __m512 row = _mm512_loadu_ps(p.row[b]);
  __m512 block[kScales];
  for (int g = 0; g < kScales; ++g) {
    block[g] = _mm512_cvtph_ps(_mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(p.block[b] + (job.block + g) * kRowBlock)));
  }
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

template <WeightFormat kFormat>
inline void scale_tile(const Call& call, const Panel& p, const Job& job, int b) {
  switch (job.groups) {
    case 4: return scale_tile_groups<kFormat, 4>(call, p, job, b);
    case 3: return scale_tile_groups<kFormat, 3>(call, p, job, b);
    case 2: return scale_tile_groups<kFormat, 2>(call, p, job, b);
    default: return scale_tile_groups<kFormat, 1>(call, p, job, b);
  }
}

// The jobs of one panel against activation rows [m0, m0 + rows): for each tile of rows, 256 columns
// at a time.
class Jobs {
 public:
  Jobs(const Call& call, const Panel& p, int blocks, std::int64_t m0, std::int64_t rows)
      : call_(call), p_(p), blocks_(blocks), m0_(m0),
        per_tile_((p.cols + kJobCols - 1) / kJobCols),
        count_((rows + kTileRows - 1) / kTileRows * per_tile_) {}

  std::int64_t count() const { return count_; }

  Job at(std::int64_t index) const {
    const std::int64_t tile = index / per_tile_, k = index % per_tile_ * kJobCols;
    const std::int64_t left = p_.cols - k;
    Job job;
    job.tiles = call_.tiles + index % 2 * kJobInts;
    job.m = call_.tile_start(m0_ + tile * kTileRows);
    job.sums = call_.sums + tile * blocks_ * kTileInts;
    job.group = (p_.k0 + k) / kActGroup;
    job.groups = static_cast<int>((left < kJobCols ? left : kJobCols) / kActGroup);
    job.first = p_.first && k == 0;
    job.block = k / p_.block_cols;
    job.last = p_.last && left <= kJobCols;
    return job;
  }

 private:
  static constexpr std::int64_t kJobCols = kJobGroups * kActGroup;
  const Call& call_;
  const Panel& p_;
  int blocks_;
  std::int64_t m0_, per_tile_, count_;
};

// The products of a job; after each group, one tile of the job before is scaled, and activations of
// the job after are fetched.
template <WeightFormat kFormat, int kBlocks>
inline void run_job(const Call& call, const Panel& p, const Job& job, const Job* before,
                    const Job& after, std::int32_t** pending) {
  const std::int64_t kp = call.a.xq->cols;
  const std::int8_t* ahead = call.a.xq->q + after.m * kp + after.group * kActGroup;
  for (int g = 0; g < kJobGroups; ++g) {
    if (g < job.groups) {
      const std::int64_t k = (job.group + g) * kActGroup;
      for (std::int64_t r = 0; r < call.rows; ++r) prefetch(ahead + r * kp + g * kActGroup);
      products<kBlocks>(call.a.xq->q + job.m * kp + k, kp, p.w8 + (k - p.k0) * kRowBlock, *pending);
      *pending = job.tiles + g * kMaxBlocks * kTileInts;
    }
    compiler_barrier();
    if (before && g < kBlocks) scale_tile<kFormat>(call, p, *before, g);
  }
}

template <WeightFormat kFormat, int kBlocks>
void all_rows(const Call& call, const Panel& p, std::int64_t m0, std::int64_t rows) {
  const Jobs jobs(call, p, kBlocks, m0, rows);
  std::int32_t* pending = nullptr;
  Job before{}, job = jobs.at(0);
  for (std::int64_t i = 0; i < jobs.count(); ++i) {
    const Job after = i + 1 < jobs.count() ? jobs.at(i + 1) : job;
    run_job<kFormat, kBlocks>(call, p, job, i > 0 ? &before : nullptr, after, &pending);
    before = job;
    job = after;
  }
  for (int b = 0; b < kBlocks; ++b) store_tile(b, pending);
  compiler_barrier();
  for (int b = 0; b < kBlocks; ++b) scale_tile<kFormat>(call, p, before, b);
}

template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const RowBlock (&rb)[kBlocks], std::int8_t* to, Panel* p) {
  p->w8 = to;
  for (int b = 0; b < kBlocks; ++b) {
    std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(to) + b * kPanelCols * kRowBlock;
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
  p.block_cols = block_cols(kFormat);
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
  for (; b + 4 <= a.block_end; b += 4) row_blocks<kFormat, 4>(call, b);
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

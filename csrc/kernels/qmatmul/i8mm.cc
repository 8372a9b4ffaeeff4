// Quantized matmul with SMMLA (int8 matrix extension). Bit-identical to scalar.cc.
//
// SMMLA multiplies 2 x 8 activations with 8 x 2 weights into 2 x 2 sums: 32 products where SDOT has
// 16. Both operands want pairs of rows, eight columns of each, side by side. Up to kFewRows rows
// the pairing of weights would cost what it saves, and neon.cc's kernel runs. For more, the
// activations of a pass are paired once for all row blocks, and a panel of 32 weight rows x
// panel_cols columns is unpacked and paired (two ZIP per 32 weights beyond unpack_neon.inl) to rest
// in L1, while the paired activations come from L2, one byte for each SMMLA.
//
// A register tile is 8 x 8 outputs: 16 accumulators, 4 vectors of weights, 4 of activations. 64
// columns are 128 SMMLA, 64 loads (or half as many LDP), 16 SCVTF and 16 FMLA: at most 80% of the
// SMMLA peak; with a scale per 32 columns another 16 SCVTF, 16 FMUL and 16 FMLA: 62%. Unpacking q4
// takes 7 vector instructions per 16 weights, which meet 8 SMMLA per 16 rows: 4% of a pass of 256.
#include <arm_neon.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/shared_neon.inl"

namespace musespark {
namespace {

constexpr std::int64_t kFewRows = 4;
constexpr int kPanelBlocks = 2;  // row blocks
// 32 rows x 512 bytes = 16 KiB of L1; blocks of 1024 columns are not parted.
constexpr std::int64_t panel_cols(WeightFormat format) {
  return block_cols(format) == kBlockQ8Wide ? kBlockQ8Wide : 512;
}
constexpr std::int64_t block_panel(WeightFormat format) { return kRowBlock * panel_cols(format); }
constexpr int kTilePairs = 4;
constexpr std::int64_t kPairBytes = 16;  // two rows x eight columns

struct Pass {
  const MatmulArgs* args;
  RowBlock rb[kPanelBlocks];
  int blocks;             // of the panel
  std::int64_t m0, rows;  // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;  // columns of the panel
  std::int8_t* pairs;     // activations [rows / 2][Kp / 8][2][8]
  std::int8_t* panel;     // weights [kPanelBlocks][panel_cols / 8][8 row pairs][2][8]
  float* sums;            // [rows / 2][kPanelBlocks][8 row pairs][2 activation rows][2 weight rows]
};

constexpr std::int64_t kPairSums = kPanelBlocks * 2 * kRowBlock;  // of two activation rows

// ---- the two operands -------------------------------------------------------------------------

// Two rows of activations, `b` null for zeros.
void pair_rows(const std::int8_t* a, const std::int8_t* b, std::int64_t kp, std::int8_t* to) {
  for (std::int64_t k = 0; k < kp; k += 16) {
    const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(a + k));
    const int64x2_t second = b ? vreinterpretq_s64_s8(vld1q_s8(b + k)) : vdupq_n_s64(0);
    vst1q_s8(to + 2 * k, vreinterpretq_s8_s64(vzip1q_s64(first, second)));
    vst1q_s8(to + 2 * k + 16, vreinterpretq_s8_s64(vzip2q_s64(first, second)));
  }
}

// Two neighbouring quads of four rows as two row pairs.
MS_INLINE void store_pairs(std::int8_t* to, int8x16_t quad, int8x16_t next) {
  const int32x4_t a = vreinterpretq_s32_s8(quad), b = vreinterpretq_s32_s8(next);
  vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
  vst1q_s8(to + kPairBytes, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
}

template <WeightFormat kFormat>
void unpack_block(const Pass& p, const RowBlock& rb, std::int8_t* panel) {
  const int8x16_t levels = level_bytes(p.args->w.format);
  for (std::int64_t k = p.k0; k < p.k0 + p.cols; k += 64) {
#pragma GCC unroll 1
    for (int part = 0; part < kParts; ++part) {
      std::int8_t* to = panel + 16 * (k - p.k0) + 2 * kPairBytes * part;
      Quads even;
      each_quads<kFormat>(rb.codes + k / 64 * code_stride(kFormat),
                          rb.sub + k / kSubGroup * kRowBlock, levels, part,
                          [&](auto v, Quads w) MS_LAMBDA {
                            if constexpr (v.value % 2 == 0) {
                              even = w;
                            } else {
                              store_pairs(to + 128 * (v.value / 2), even.low, w.low);
                              store_pairs(to + 128 * (v.value / 2 + 4), even.high, w.high);
                            }
                          });
    }
  }
}

// ---- tiles ------------------------------------------------------------------------------------

template <int kPairs>
MS_INLINE void tile_start(int32x4_t (&acc)[kPairs][4]) {
  unroll<kPairs>(
      [&](auto c) MS_LAMBDA { unroll<4>([&](auto i) MS_LAMBDA { acc[c][i] = vdupq_n_s32(0); }); });
}

// acc += the exact sums over kCols columns: [activation pair][weight pair]. Activation pairs lie
// kp / 8 vectors apart.
template <int kCols, int kPairs>
MS_INLINE void tile_dot(const std::int8_t* panel, const std::int8_t* pairs, std::int64_t kp,
                        int32x4_t (&acc)[kPairs][4]) {
#pragma GCC unroll 2
  for (int k = 0; k < kCols; k += 8) {
    int8x16_t w[4];
    unroll<4>([&](auto i) MS_LAMBDA { w[i] = vld1q_s8(panel + 16 * k + kPairBytes * i); });
    unroll<kPairs>([&](auto c) MS_LAMBDA {
      const int8x16_t x = vld1q_s8(pairs + 2 * (c * kp + k));
      unroll<4>([&](auto i) MS_LAMBDA { acc[c][i] = vmmlaq_s32(acc[c][i], x, w[i]); });
    });
  }
}

// Block scales of the weight rows of four pairs, each pair twice: as the lanes of a 2 x 2 sum lie.
struct PairScales {
  float32x4_t v[4];
};
MS_INLINE PairScales pair_scales(const std::uint16_t* block) {
  PairScales to;
  unroll<2>([&](auto i) MS_LAMBDA {
    const float64x2_t rows = vreinterpretq_f64_f32(block_scales(block + 4 * i));
    to.v[2 * i] = vreinterpretq_f32_f64(vdupq_laneq_f64(rows, 0));
    to.v[2 * i + 1] = vreinterpretq_f32_f64(vdupq_laneq_f64(rows, 1));
  });
  return to;
}

// What a tile reads and writes: weight rows 8 * half .. of the panel, activation pairs from `pair`.
struct TileAt {
  const std::uint8_t* fetch;  // next_codes, or null
  const std::int8_t* panel;
  const std::int8_t* pairs;
  const float* scale;          // of row 2 * pair and the panel's first group
  const float* second;         // of row 2 * pair + 1; of the same row where there is no second
  const std::uint16_t* block;  // of the panel's first column
  float* sums;
};

// Scales of both rows of pair c of a tile. The last row may have no partner.
MS_INLINE float32x4_t row_scales(const float* first, const float* second) {
  return vcombine_f32(vld1_dup_f32(first), vld1_dup_f32(second));
}

template <WeightFormat kFormat, int kPairs>
MS_INLINE void tile_g32(const Pass& p, TileAt at) {
  const std::int64_t kp = p.args->xq->cols, all_groups = kp / kActGroup;
  for (std::int64_t k = 0; k < p.cols; k += 64, at.block += 2 * kRowBlock) {
    int32x4_t acc[kPairs][4];
    float32x4_t f[kPairs][4];  // rests in memory during the second half
    if (at.fetch) fetch_codes<kFormat>(at.fetch + k / kActGroup * code_stride(kFormat));
    tile_start<kPairs>(acc);
    tile_dot<32, kPairs>(at.panel + 16 * k, at.pairs + 2 * k, kp, acc);
    const PairScales first = pair_scales(at.block);
    unroll<kPairs>([&](auto c) MS_LAMBDA {
      unroll<4>([&](auto i)
                    MS_LAMBDA { f[c][i] = vmulq_f32(vcvtq_f32_s32(acc[c][i]), first.v[i]); });
    });
    tile_start<kPairs>(acc);
    tile_dot<32, kPairs>(at.panel + 16 * (k + 32), at.pairs + 2 * (k + 32), kp, acc);
    const PairScales second = pair_scales(at.block + kRowBlock);
    unroll<kPairs>([&](auto c) MS_LAMBDA {
      const std::int64_t g = 2 * c * all_groups + k / kActGroup;
      const float32x4_t x =
          row_scales(at.scale + g, (c == kPairs - 1 ? at.second : at.scale + all_groups) + g);
      unroll<4>([&](auto i) MS_LAMBDA {
        const float32x4_t t = vfmaq_f32(f[c][i], vcvtq_f32_s32(acc[c][i]), second.v[i]);
        float* sum = at.sums + kPairSums * c + 4 * i;
        vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), t, x));
      });
    });
  }
}

template <WeightFormat kFormat, int kPairs>
MS_INLINE void tile_block(const Pass& p, TileAt at) {
  constexpr std::int64_t kGroups = groups_per_block(kFormat);
  const std::int64_t kp = p.args->xq->cols, all_groups = kp / kActGroup;
  const std::int64_t groups = p.cols / kActGroup;
  for (std::int64_t first = 0; first < groups; first += kGroups, at.block += kRowBlock) {
    const std::int64_t end = groups - first < kGroups ? groups : first + kGroups;
    int32x4_t acc[kPairs][4];
    tile_start<kPairs>(acc);
    for (std::int64_t group = first; group < end; ++group) {
      if (at.fetch) fetch_codes<kFormat>(at.fetch + group * code_stride(kFormat));
      tile_dot<64, kPairs>(at.panel + 1024 * group, at.pairs + 128 * group, kp, acc);
    }
    const PairScales block = pair_scales(at.block);
    unroll<kPairs>([&](auto c) MS_LAMBDA {
      const std::int64_t g = 2 * c * all_groups + first;
      const float32x4_t x =
          row_scales(at.scale + g, (c == kPairs - 1 ? at.second : at.scale + all_groups) + g);
      unroll<4>([&](auto i) MS_LAMBDA {
        const float32x4_t f = vmulq_f32(vcvtq_f32_s32(acc[c][i]), x);
        float* sum = at.sums + kPairSums * c + 4 * i;
        vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), f, block.v[i]));
      });
    });
  }
}

// kPairs activation pairs from `pair` of the pass over the panel. Not inlined: it has all registers
// to itself.
template <WeightFormat kFormat, int kPairs>
[[gnu::noinline]] void tile(const Pass& p, std::int64_t pair) {
  const std::int64_t kp = p.args->xq->cols, all_groups = kp / kActGroup;
  const bool whole = 2 * (pair + kPairs) <= p.rows;
  for (int half = 0; half < 2 * p.blocks; ++half) {
    TileAt at;
    const bool first = pair == 0 && half % 2 == 0;
    at.fetch =
        first ? next_codes<kFormat>(*p.args, p.rb[half / 2], p.k0, p.cols, kPanelBlocks) : nullptr;
    at.panel = p.panel + half / 2 * block_panel(kFormat) + half % 2 * 4 * kPairBytes;
    at.pairs = p.pairs + 2 * (pair * kp + p.k0);
    at.scale = p.args->xq->scale + (p.m0 + 2 * pair) * all_groups + p.k0 / kActGroup;
    at.second = whole ? at.scale + all_groups : at.scale;
    at.block = p.rb[half / 2].block + p.k0 / block_cols(kFormat) * kRowBlock + half % 2 * 8;
    at.sums = p.sums + kPairSums * pair + 16 * half;
    if constexpr (is_g32(kFormat)) {
      tile_g32<kFormat, kPairs>(p, at);
    } else {
      tile_block<kFormat, kPairs>(p, at);
    }
  }
}

// ---- a pass -----------------------------------------------------------------------------------

// Row m of the pass: sums of the 16 weight rows of row block first + b, times their scales.
void store_row(const Pass& p, std::int64_t first, int b, std::int64_t m) {
  const float* sums = p.sums + m / 2 * kPairSums + b * 2 * kRowBlock + m % 2 * 2;
  float32x4_t v[kParts];
  for (int part = 0; part < kParts; ++part) {
    const float32x4_t sum = vcombine_f32(vld1_f32(sums + 8 * part), vld1_f32(sums + 8 * part + 4));
    v[part] = vmulq_f32(sum, vld1q_f32(p.rb[b].row + 4 * part));
  }
  const MatmulArgs& a = *p.args;
  store_rows(a.out + (p.m0 + m) * a.ldo + (first + b) * kRowBlock, v, rows_of(a.w, first + b));
}

// Row blocks first .. first + blocks - 1.
template <WeightFormat kFormat>
void pass_blocks(Pass p, std::int64_t first) {
  const MatmulArgs& a = *p.args;
  const std::int64_t all_pairs = (p.rows + 1) / 2;
  for (int b = 0; b < p.blocks; ++b) p.rb[b] = row_block(a.w, first + b);
  for (std::int64_t i = 0; i < all_pairs * kPairSums; ++i) p.sums[i] = 0.0f;
  constexpr std::int64_t kPanelCols = panel_cols(kFormat);
  for (p.k0 = 0; p.k0 < a.xq->cols; p.k0 += kPanelCols) {
    p.cols = a.xq->cols - p.k0 < kPanelCols ? a.xq->cols - p.k0 : kPanelCols;
    for (int b = 0; b < p.blocks; ++b) {
      unpack_block<kFormat>(p, p.rb[b], p.panel + b * block_panel(kFormat));
    }
    std::int64_t pair = 0;
    for (; pair + kTilePairs <= all_pairs; pair += kTilePairs) tile<kFormat, kTilePairs>(p, pair);
    if (all_pairs - pair == 3) tile<kFormat, 3>(p, pair);
    if (all_pairs - pair == 2) tile<kFormat, 2>(p, pair);
    if (all_pairs - pair == 1) tile<kFormat, 1>(p, pair);
  }
  for (int b = 0; b < p.blocks; ++b) {
    for (std::int64_t m = 0; m < p.rows; ++m) store_row(p, first, b, m);
  }
}

template <WeightFormat kFormat>
void many_rows(const MatmulArgs& a) {
  const std::int64_t kp = a.xq->cols, pass_rows = paired_rows(kp);
  Pass p{};
  p.args = &a;
  p.panel = static_cast<std::int8_t*>(a.scratch);
  p.pairs = p.panel + kPanelBlocks * block_panel(kFormat);
  for (p.m0 = 0; p.m0 < a.m; p.m0 += pass_rows) {
    p.rows = a.m - p.m0 < pass_rows ? a.m - p.m0 : pass_rows;
    p.sums = reinterpret_cast<float*>(p.pairs + (p.rows + 1) / 2 * 2 * kp);
    for (std::int64_t m = 0; m < p.rows; m += 2) {
      const std::int8_t* row = a.xq->q + (p.m0 + m) * a.xq->stride;
      pair_rows(row, m + 1 < p.rows ? row + a.xq->stride : nullptr, kp, p.pairs + m * kp);
    }
    for (std::int64_t b = a.block_begin; b < a.block_end; b += p.blocks) {
      p.blocks = a.block_end - b < kPanelBlocks ? 1 : kPanelBlocks;
      pass_blocks<kFormat>(p, b);
    }
  }
}

}  // namespace

void matmul_i8mm(const MatmulArgs* args) {
  if (args->m <= kFewRows) return matmul_neon(args);
  const bool quantized =
      with_format(args->w.format, [&](auto format) MS_LAMBDA { many_rows<format.value>(*args); });
  if (!quantized) matmul_float_neon(args);
}

}  // namespace musespark

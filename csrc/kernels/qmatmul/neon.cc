// Quantized matmul with SDOT (Armv8.2 dot product). Bit-identical to scalar.cc.
//
// SDOT by lane multiplies 16 weights (four rows, four columns) with four activations that are a
// lane of a load of sixteen: activations stay as quantize_rows wrote them, and being signed times
// signed it needs no bias.
//
// Few rows (M <= 4): four weight rows x 64 columns at a time, unpacked in registers and used for
// every activation row: 2 M accumulators, 2 M activations, and what unpacking needs. For 64 columns
// of a row block 32 loads of codes, and per 32 weights the unpacking (unpack_neon.inl) and 2 M
// SDOT: at M = 1 14 vector instructions for 16 bytes of q4, so a core with two 128-bit pipes takes
// in 2.3 bytes a cycle and one with four 4.6.
//
// More: a panel of 16 rows x kPanelCols columns as int8 rests in L1 (q8 and q8g32h are that panel
// already), and a register tile of 16 x 4 outputs runs over it: 16 accumulators, 4 vectors of
// weights, 4 of activations. 64 columns are 256 SDOT, 80 loads, 16 SCVTF and 16 FMLA (MOVI of zero
// takes no pipe on newer cores): at most 89% of the SDOT peak; with a scale per 32 columns another
// 16 SCVTF, 16 FMUL and 16 FMLA: 76%.
#include <arm_neon.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize.inl"
#include "kernels/qmatmul/quantize_neon.inl"
#include "kernels/qmatmul/shared_neon.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 1024;  // 16 rows x 1024 bytes = 16 KiB of L1
constexpr std::int64_t kPassRows = 512;    // what scratch holds sums of
constexpr int kTileRows = 4;
constexpr std::int64_t kFetchAhead = 2048;  // bytes of codes

// ---- few rows ---------------------------------------------------------------------------------

template <int kRows>
struct Halves {  // exact sums over the first and the last 32 of 64 columns
  int32x4_t low[kRows], high[kRows];
};

// 64 columns of four weight rows times activation rows `stride` apart.
template <WeightFormat kFormat, int kRows>
MS_INLINE Halves<kRows> dot64(const std::uint8_t* codes, const std::int8_t* sub, int8x16_t levels,
                              int part, const std::int8_t* q, std::int64_t stride) {
  Halves<kRows> acc;
  unroll<kRows>([&](auto c) MS_LAMBDA { acc.low[c] = acc.high[c] = vdupq_n_s32(0); });
  each_quads<kFormat>(codes, sub, levels, part, [&](auto v, Quads w) MS_LAMBDA {
    constexpr int kVector = v.value / 4, kLane = v.value % 4;
    unroll<kRows>([&](auto c) MS_LAMBDA {
      const std::int8_t* row = q + c * stride + 16 * kVector;
      acc.low[c] = vdotq_laneq_s32(acc.low[c], w.low, vld1q_s8(row), kLane);
      acc.high[c] = vdotq_laneq_s32(acc.high[c], w.high, vld1q_s8(row + 32), kLane);
    });
  });
  return acc;
}

// total += (both sums times their block scales) * activation scale; `block` of the group's first.
MS_INLINE float32x4_t add_g32(int32x4_t low, int32x4_t high, const std::uint16_t* block,
                              float scale, float32x4_t total) {
  float32x4_t t = vmulq_f32(vcvtq_f32_s32(low), block_scales(block));
  t = vfmaq_f32(t, vcvtq_f32_s32(high), block_scales(block + kRowBlock));
  return vfmaq_n_f32(total, t, scale);
}

// Row block `index` times kRows activation rows from m0.
template <WeightFormat kFormat, int kRows>
void few_rows(const MatmulArgs& a, std::int64_t m0, std::int64_t index) {
  constexpr std::int64_t kGroups = groups_per_block(kFormat);
  constexpr std::int64_t kStride = code_stride(kFormat);
  const std::int64_t stride = a.xq->stride, groups = a.xq->cols / kActGroup;
  const int8x16_t levels = level_bytes(a.w.format);
  const RowBlock rb = row_block(a.w, index);
  const float* scale = a.xq->scale + m0 * groups;
  int32x4_t sums_of[kRows][kParts];  // over a block
  float32x4_t total[kRows][kParts];
  for (int c = 0; c < kRows; ++c) {
    for (int part = 0; part < kParts; ++part) {
      sums_of[c][part] = vdupq_n_s32(0);
      total[c][part] = vdupq_n_f32(0.0f);
    }
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::uint8_t* codes = rb.codes + g * kStride;
    const std::int8_t* q = a.xq->q + m0 * stride + g * kActGroup;
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    fetch_codes<kFormat>(codes + kFetchAhead);
#pragma GCC unroll 1
    for (int part = 0; part < kParts; ++part) {
      const Halves<kRows> sum =
          dot64<kFormat, kRows>(codes, rb.sub + 2 * kRowBlock * g, levels, part, q, stride);
      unroll<kRows>([&](auto c) MS_LAMBDA {
        const float s = scale[c * groups + g];
        float32x4_t& sums = total[c][part];
        if constexpr (is_g32(kFormat)) {
          const std::uint16_t* block = rb.block + 2 * g * kRowBlock + 4 * part;
          sums = add_g32(sum.low[c], sum.high[c], block, s, sums);
        } else {
          int32x4_t& exact = sums_of[c][part];
          exact = vaddq_s32(exact, vaddq_s32(sum.low[c], sum.high[c]));
          if (block_ends) {
            const std::uint16_t* block = rb.block + g / kGroups * kRowBlock + 4 * part;
            sums = vfmaq_f32(sums, vmulq_n_f32(vcvtq_f32_s32(exact), s), block_scales(block));
            exact = vdupq_n_s32(0);
          }
        }
      });
    }
  }
  for (int c = 0; c < kRows; ++c) {
    for (int part = 0; part < kParts; ++part) {
      total[c][part] = vmulq_f32(total[c][part], vld1q_f32(rb.row + 4 * part));
    }
    store_rows(a.out + (m0 + c) * a.ldo + index * kRowBlock, total[c], rows_of(a.w, index));
  }
}

// ---- more -------------------------------------------------------------------------------------

struct Pass {
  const MatmulArgs* args;
  RowBlock rb;
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;      // columns of the panel
  const std::int8_t* panel;   // [cols / 4][16 rows][4]
  const std::uint8_t* fetch;  // next_codes, or null
  float* sums;                // [rows][16]
};

template <int kRows>
using Tile = int32x4_t[kRows][kParts];

template <int kRows>
MS_INLINE void tile_start(Tile<kRows>& acc) {
  unroll<kRows>([&](auto c) MS_LAMBDA {
    unroll<kParts>([&](auto part) MS_LAMBDA { acc[c][part] = vdupq_n_s32(0); });
  });
}

// acc += the exact sums over kCols columns of 16 weight rows and kRows activation rows `stride`
// apart.
template <int kCols, int kRows>
MS_INLINE void tile_dot(const std::int8_t* panel, const std::int8_t* q, std::int64_t stride,
                        Tile<kRows>& acc) {
  int end = kCols;
  __asm__("" : "+r"(end));  // a loop: GCC 12 spills the accumulators of two unrolled steps
  for (int k = 0; k < end; k += 16) {
    int8x16_t x[kRows];
    unroll<kRows>([&](auto c) MS_LAMBDA { x[c] = vld1q_s8(q + c * stride + k); });
    unroll<4>([&](auto lane) MS_LAMBDA {
      int8x16_t w[kParts];
      unroll<kParts>([&](auto part)
                         MS_LAMBDA { w[part] = vld1q_s8(panel + 16 * (k + 4 * lane + part)); });
      unroll<kRows>([&](auto c) MS_LAMBDA {
        unroll<kParts>([&](auto part) MS_LAMBDA {
          acc[c][part] = vdotq_laneq_s32(acc[c][part], w[part], x[c], lane.value);
        });
      });
    });
  }
}

// kRows activation rows (m of the pass on) over the panel, for formats with a scale per 32 columns.
template <WeightFormat kFormat, int kRows>
MS_INLINE void tile_g32(const Pass& p, std::int64_t m) {
  const std::int64_t all_groups = p.args->xq->cols / kActGroup;
  const std::int64_t stride = p.args->xq->stride;
  const std::int8_t* q = p.args->xq->q + (p.m0 + m) * stride + p.k0;
  const float* scale = p.args->xq->scale + (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::uint16_t* block = p.rb.block + p.k0 / kBlockG32 * kRowBlock;
  float* sums = p.sums + m * kRowBlock;
  for (std::int64_t k = 0; k < p.cols; k += 64, block += 2 * kRowBlock, ++scale) {
    Tile<kRows> acc;
    float32x4_t f[kRows][kParts];  // rests in memory during the second half
    if (p.fetch) fetch_codes<kFormat>(p.fetch + k / kActGroup * code_stride(kFormat));
    tile_start<kRows>(acc);
    tile_dot<32, kRows>(p.panel + 16 * k, q + k, stride, acc);
    unroll<kParts>([&](auto part) MS_LAMBDA {
      const float32x4_t s = block_scales(block + 4 * part);
      unroll<kRows>([&](auto c)
                        MS_LAMBDA { f[c][part] = vmulq_f32(vcvtq_f32_s32(acc[c][part]), s); });
    });
    tile_start<kRows>(acc);
    tile_dot<32, kRows>(p.panel + 16 * (k + 32), q + k + 32, stride, acc);
    unroll<kParts>([&](auto part) MS_LAMBDA {
      const float32x4_t s = block_scales(block + kRowBlock + 4 * part);
      unroll<kRows>([&](auto c) MS_LAMBDA {
        const float32x4_t t = vfmaq_f32(f[c][part], vcvtq_f32_s32(acc[c][part]), s);
        float* sum = sums + c * kRowBlock + 4 * part;
        vst1q_f32(sum, vfmaq_n_f32(vld1q_f32(sum), t, scale[c * all_groups]));
      });
    });
  }
}

// The same for the others.
template <WeightFormat kFormat, int kRows>
MS_INLINE void tile_block(const Pass& p, std::int64_t m) {
  constexpr std::int64_t kGroups = groups_per_block(kFormat);
  const std::int64_t all_groups = p.args->xq->cols / kActGroup;
  const std::int64_t stride = p.args->xq->stride;
  const std::int8_t* q = p.args->xq->q + (p.m0 + m) * stride + p.k0;
  const float* scale = p.args->xq->scale + (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::uint16_t* block = p.rb.block + p.k0 / block_cols(kFormat) * kRowBlock;
  const std::int64_t groups = p.cols / kActGroup;
  float* sums = p.sums + m * kRowBlock;
  for (std::int64_t g0 = 0; g0 < groups; g0 += kGroups, block += kRowBlock) {
    const std::int64_t end = groups - g0 < kGroups ? groups : g0 + kGroups;
    Tile<kRows> acc;
    tile_start<kRows>(acc);
    for (std::int64_t g = g0; g < end; ++g) {
      if (p.fetch) fetch_codes<kFormat>(p.fetch + g * code_stride(kFormat));
      tile_dot<64, kRows>(p.panel + 1024 * g, q + 64 * g, stride, acc);
    }
    unroll<kParts>([&](auto part) MS_LAMBDA {
      const float32x4_t s = block_scales(block + 4 * part);
      unroll<kRows>([&](auto c) MS_LAMBDA {
        const float32x4_t f = vmulq_n_f32(vcvtq_f32_s32(acc[c][part]), scale[c * all_groups + g0]);
        float* sum = sums + c * kRowBlock + 4 * part;
        vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), f, s));
      });
    });
  }
}

// Not inlined: it has all registers to itself.
template <WeightFormat kFormat, int kRows>
[[gnu::noinline]] void tile(const Pass& p, std::int64_t m) {
  if constexpr (is_g32(kFormat)) {
    tile_g32<kFormat, kRows>(p, m);
  } else {
    tile_block<kFormat, kRows>(p, m);
  }
}

template <WeightFormat kFormat>
void unpack_panel(const Pass& p, std::int8_t* panel) {
  const int8x16_t levels = level_bytes(p.args->w.format);
  for (std::int64_t k = p.k0; k < p.k0 + p.cols; k += 64) {
    std::int8_t* to = panel + 16 * (k - p.k0);
#pragma GCC unroll 1
    for (int part = 0; part < kParts; ++part) {
      each_quads<kFormat>(p.rb.codes + k / 64 * code_stride(kFormat),
                          p.rb.sub + k / kSubGroup * kRowBlock, levels, part,
                          [&](auto v, Quads w) MS_LAMBDA {
                            vst1q_s8(to + 64 * v + 16 * part, w.low);
                            vst1q_s8(to + 64 * (v + 8) + 16 * part, w.high);
                          });
    }
  }
}

template <WeightFormat kFormat>
void pass_block(Pass p, std::int64_t index, std::int8_t* panel) {
  const MatmulArgs& a = *p.args;
  p.rb = row_block(a.w, index);
  for (std::int64_t i = 0; i < p.rows * kRowBlock; ++i) p.sums[i] = 0.0f;
  for (p.k0 = 0; p.k0 < a.xq->cols; p.k0 += kPanelCols) {
    p.cols = a.xq->cols - p.k0 < kPanelCols ? a.xq->cols - p.k0 : kPanelCols;
    if constexpr (is_byte(kFormat)) {
      p.panel = reinterpret_cast<const std::int8_t*>(p.rb.codes) + 16 * p.k0;
    } else {
      unpack_panel<kFormat>(p, panel);
      p.panel = panel;
    }
    p.fetch = next_codes<kFormat>(a, p.rb, p.k0, p.cols, 1);
    std::int64_t m = 0;
    for (; m + kTileRows <= p.rows; m += kTileRows, p.fetch = nullptr) {
      tile<kFormat, kTileRows>(p, m);
    }
    if (p.rows - m == 3) tile<kFormat, 3>(p, m);
    if (p.rows - m == 2) tile<kFormat, 2>(p, m);
    if (p.rows - m == 1) tile<kFormat, 1>(p, m);
  }
  for (std::int64_t m = 0; m < p.rows; ++m) {
    float32x4_t v[kParts];
    for (int part = 0; part < kParts; ++part) {
      v[part] =
          vmulq_f32(vld1q_f32(p.sums + m * kRowBlock + 4 * part), vld1q_f32(p.rb.row + 4 * part));
    }
    store_rows(a.out + (p.m0 + m) * a.ldo + index * kRowBlock, v, rows_of(a.w, index));
  }
}

template <WeightFormat kFormat>
void many_rows(const MatmulArgs& a) {
  std::int8_t* panel = static_cast<std::int8_t*>(a.scratch);
  Pass p{};
  p.args = &a;
  p.sums = reinterpret_cast<float*>(panel + kPanelCols * kRowBlock);
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (std::int64_t b = a.block_begin; b < a.block_end; ++b) pass_block<kFormat>(p, b, panel);
  }
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m > 4) return many_rows<kFormat>(a);
  for (std::int64_t b = a.block_begin; b < a.block_end; ++b) {
    if (a.m == 1) few_rows<kFormat, 1>(a, 0, b);
    if (a.m == 2) few_rows<kFormat, 2>(a, 0, b);
    if (a.m == 3) few_rows<kFormat, 3>(a, 0, b);
    if (a.m == 4) few_rows<kFormat, 4>(a, 0, b);
  }
}

}  // namespace

void quantize_rows_neon(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                        const QuantizedRows* out) {
  quantize_all(x, ldx, m, k, *out);
}

void matmul_neon(const MatmulArgs* args) {
  const bool quantized = with_format(
      args->w.format, [&](auto format) MS_LAMBDA { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_neon(args);
}

}  // namespace musespark

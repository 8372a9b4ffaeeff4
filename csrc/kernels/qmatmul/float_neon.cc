// f32 and bf16 weights on AArch64: one fma chain per output, columns ascending.
//
// A tile of 16 weight rows x up to 4 activation rows: 16 accumulators, more than latency times
// pipes. A column costs 4 loads (bf16: 2, and 4 shifts or masks) and 4 FMLA a row; four activations
// come with one load and are taken by lane.
#include <arm_neon.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/shared_neon.inl"

namespace musespark {
namespace {

constexpr int kTileRows = 4;

struct Tile {
  const std::uint8_t* w;
  const float* x;
  std::int64_t ldx;
  float* out;
  std::int64_t ldo;
  std::int64_t cols;
  std::int64_t rows;  // weight rows that exist, at most 16
  const float* bias;  // of them; null: none
};

struct Column {
  float32x4_t w[kParts];
};

template <WeightFormat kFormat>
MS_INLINE Column column(const std::uint8_t* w, std::int64_t k, bool odd) {
  Column to;
  unroll<kParts>([&](auto part) MS_LAMBDA {
    if constexpr (kFormat == WeightFormat::f32) {
      to.w[part] = vreinterpretq_f32_u8(vld1q_u8(w + 64 * k + 16 * part));
    } else {  // a lane holds columns k (low half) and k + 1
      const uint32x4_t pair = vreinterpretq_u32_u8(vld1q_u8(w + 64 * (k / 2) + 16 * part));
      to.w[part] = vreinterpretq_f32_u32(odd ? vandq_u32(pair, vdupq_n_u32(0xffff0000u))
                                             : vshlq_n_u32(pair, 16));
    }
  });
  return to;
}

void add_bias(const Tile& t, float32x4_t (&v)[kParts]) {
  float lane[kRowBlock] = {};
  for (std::int64_t i = 0; i < t.rows; ++i) lane[i] = t.bias[i];
  for (int part = 0; part < kParts; ++part) {
    const float32x4_t sum = vaddq_f32(v[part], vld1q_f32(lane + 4 * part));
    v[part] = vbslq_f32(vceqq_f32(sum, sum), sum, vdupq_n_f32(__builtin_nanf("")));
  }
}

template <WeightFormat kFormat, int kRows>
void tile(const Tile& t) {
  float32x4_t acc[kRows][kParts];
  unroll<kRows>([&](auto c) MS_LAMBDA {
    unroll<kParts>([&](auto part) MS_LAMBDA { acc[c][part] = vdupq_n_f32(0.0f); });
  });
  std::int64_t k = 0;
  for (; k + 4 <= t.cols; k += 4) {
    float32x4_t x[kRows];
    unroll<kRows>([&](auto c) MS_LAMBDA { x[c] = vld1q_f32(t.x + c * t.ldx + k); });
    unroll<4>([&](auto i) MS_LAMBDA {
      const Column w = column<kFormat>(t.w, k + i, i % 2 == 1);
      unroll<kRows>([&](auto c) MS_LAMBDA {
        unroll<kParts>([&](auto part) MS_LAMBDA {
          acc[c][part] = vfmaq_laneq_f32(acc[c][part], w.w[part], x[c], i.value);
        });
      });
    });
  }
  for (; k < t.cols; ++k) {
    const Column w = column<kFormat>(t.w, k, k % 2 == 1);
    unroll<kRows>([&](auto c) MS_LAMBDA {
      unroll<kParts>([&](auto part) MS_LAMBDA {
        acc[c][part] = vfmaq_n_f32(acc[c][part], w.w[part], t.x[c * t.ldx + k]);
      });
    });
  }
  unroll<kRows>([&](auto c) MS_LAMBDA {
    if (t.bias) add_bias(t, acc[c]);
    store_rows(t.out + c * t.ldo, acc[c], t.rows);
  });
}

template <WeightFormat kFormat>
void matmul_float(const MatmulArgs& a) {
  for (std::int64_t b = a.block_begin; b < a.block_end; ++b) {
    Tile t{a.w.data + b * a.w.row_block_bytes,
           a.x,
           a.ldx,
           a.out + b * kRowBlock,
           a.ldo,
           a.w.cols,
           rows_of(a.w, b),
           a.bias ? a.bias + b * kRowBlock : nullptr};
    std::int64_t m = a.m;
    for (; m >= kTileRows; m -= kTileRows) {
      tile<kFormat, kTileRows>(t);
      t.x += kTileRows * t.ldx;
      t.out += kTileRows * t.ldo;
    }
    if (m == 3) tile<kFormat, 3>(t);
    if (m == 2) tile<kFormat, 2>(t);
    if (m == 1) tile<kFormat, 1>(t);
  }
}

}  // namespace

void matmul_float_neon(const MatmulArgs* args) {
  if (args->w.format == WeightFormat::f32) return matmul_float<WeightFormat::f32>(*args);
  matmul_float<WeightFormat::bf16>(*args);
}

}  // namespace musespark

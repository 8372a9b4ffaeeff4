// Contract of the matmul kernels: out[m][n] = sum_k x[m][k] * W[n][k].
//
// One arithmetic, the same bits on every instruction set, for every M and every split of rows:
//
// Activations are quantized once per input (quantize_rows), with a scale per row and G columns: 256
// for formats whose blocks are that long (q4, q6), 1024 for q8g1024h, so that a block's products
// add up exactly before any float; 64 for all others (act_scale_cols). Of each G columns
//     amax  = max |x| (compared as integers on the bits without sign)
//     if amax is not finite: scale = NaN (0x7fc00000), q = 0;  if amax < 1e-30f: scale = 0, q = 0
//     else scale = amax / 127.0f, inv = 127.0f / amax, q = clamp(rne(x * inv), -127, 127)
//   Columns K..Kp-1 are zero. Stored by groups of 64 columns whatever G is:
//     scale            of the G columns that the group is in
//     bias             -128 * sum(q)  (undoes the +128 that makes weights unsigned for dpbusd);
//                      G > 64: of all G in their first group, 0 in the others
//     half_bias[0, 1]  the shares of columns 0..31 and 32..63 in it; G > 64: bias and 0
//
// Quantized weights (formats/weights.h), for each output (m, n), every operation float32, rne:
//     F = +0
//     for each block b ascending:                      (B = G columns; the last may have fewer)
//       f = float(sum_k q[m][k] * w8[n][k]) * scale[m][b]      (sum: exact, below 2^24)
//       F = fma(f, float(block[n][b]), F)
//     out = F * row[n]
//
// Formats with a scale per 32 columns, S0 and S1 the exact sums of q * w8 over the first and last
// 32 columns of an activation group, |S| <= 32 * 127 * 128 and so exact as floats:
//     F = +0
//     for each activation group a ascending, b = 2 * a:
//       t = fma(float(S1), float(block[n][b + 1]), float(S0) * float(block[n][b]))
//       F = fma(t, scale[m][a], F)
//     out = F * row[n]
//
// f32 and bf16 weights take the float activations: acc = +0; acc = fma(x[m][k], W[n][k], acc) for
// k = 0..K-1 ascending, one accumulator per output; out = acc, or with `bias` canonical(acc +
// bias[n]). Of a row block the columns 0..K-1 alone are read (bf16: whole pairs), so that adapters
// may leave the padding out.
//
// NaN results are canonical on no instruction set by themselves: ops treats them by value only.
//
// Kernels know nothing of threads: the caller gives a range of row blocks. Out rows are `ldo`
// floats apart; only n < W.rows are written, even in a last row block that is partly padding. No
// aliasing. Kernels may read nothing outside the packed matrix and the activation views. `scratch`
// is 64-byte aligned, at least matmul_scratch_bytes(W, M) long, private to the call.
#pragma once

#include <cstdint>

#include "formats/weights.h"

namespace musespark {

// Quantized activations of M rows. q: M rows of Kp int8, 64-byte aligned and `stride` bytes apart;
// scale and bias: [M][Kp/64]; half_bias: [M][Kp/32]. `group`: G.
struct QuantizedRows {
  std::int8_t* q;
  float* scale;
  std::int32_t* bias;
  std::int32_t* half_bias;
  std::int64_t rows;    // M
  std::int64_t cols;    // Kp, multiple of 64
  std::int64_t stride;  // multiple of 64, >= Kp
  std::int64_t group = kActGroup;

  // `count` rows from `row`, as a view.
  QuantizedRows slice(std::int64_t row, std::int64_t count) const {
    const std::int64_t at = row * (cols / kActGroup);
    return {q + row * stride, scale + at, bias + at, half_bias + 2 * at, count, cols,
            stride,           group};
  }
  // `count` columns from `first` (a multiple of `group`) of one row, as a view of its own.
  QuantizedRows part(std::int64_t row, std::int64_t first, std::int64_t count) const {
    const std::int64_t at = (row * cols + first) / kActGroup;
    return {q + row * stride + first,
            scale + at,
            bias + at,
            half_bias + 2 * at,
            1,
            count,
            count,
            group};
  }
};

// G of a quantized format.
constexpr std::int64_t act_scale_cols(WeightFormat format) {
  return format == WeightFormat::q8g1024h                           ? kBlockQ8Wide
         : format == WeightFormat::q4 || format == WeightFormat::q6 ? kBlockQ4
                                                                    : kActGroup;
}

struct MatmulArgs {
  PackedMatrix w;
  const QuantizedRows* xq;  // quantized formats; xq->group = act_scale_cols(w.format)
  const float* x;           // f32 and bf16 weights: rows `ldx` floats apart
  std::int64_t ldx;
  std::int64_t m;            // rows of activations, >= 1
  std::int64_t block_begin;  // row blocks [begin, end)
  std::int64_t block_end;
  float* out;  // out[m * ldo + n], n counted from row 0 of the matrix
  std::int64_t ldo;
  void* scratch;
  const float* bias = nullptr;  // f32 and bf16 weights: [w.rows], or null
};

// x: M rows of K floats, ldx apart -> out (out->cols = K rounded up to 64).
using QuantizeRowsFn = void (*)(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                                const QuantizedRows* out);
using MatmulFn = void (*)(const MatmulArgs* args);

// Bytes of scratch a call with this K and M may use (the same bound for every instruction set).
std::int64_t matmul_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t m);

}  // namespace musespark

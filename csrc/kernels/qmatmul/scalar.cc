// The specification of the matmul kernels: one output at a time, in the order of qmatmul.h.
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest even for |x| < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
int round_even(float x) {
  constexpr float kMagic = 12582912.0f;
  const float shifted = x + kMagic;
  return static_cast<int>(shifted - kMagic);
}

// The scale of `n` values, and the codes.
float quantize(const float* x, std::int64_t n, std::int8_t* q) {
  std::uint32_t amax_bits = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    if (magnitude > amax_bits) amax_bits = magnitude;
  }
  const float amax = float_of(amax_bits);
  const bool finite = amax_bits < 0x7f800000u;
  if (!finite || amax < 1e-30f) {
    std::memset(q, 0, static_cast<std::size_t>(n));
    return finite ? 0.0f : float_of(0x7fc00000u);
  }
  const float inverse = 127.0f / amax;
  for (std::int64_t i = 0; i < n; ++i) {
    int code = round_even(x[i] * inverse);
    if (code > 127) code = 127;
    if (code < -127) code = -127;
    q[i] = static_cast<std::int8_t>(code);
  }
  return amax / 127.0f;
}

// Columns from k on that share a scale, of one row: `x` has `n` of them; `out` that row.
void quantize_columns(const float* x, std::int64_t n, std::int64_t k, const QuantizedRows& out) {
  const std::int64_t first = k / kActGroup;
  std::int8_t* q = out.q + k;
  const float scale = quantize(x, n, q);
  for (std::int64_t i = n; i % kActGroup != 0; ++i) q[i] = 0;
  for (std::int64_t g = 0; g * kActGroup < n; ++g) {
    out.scale[first + g] = scale;
    std::int32_t half[2] = {0, 0};
    for (int i = 0; i < kActGroup; ++i) half[i / 32] -= 128 * q[g * kActGroup + i];
    const bool apart = out.group == kActGroup;
    out.half_bias[2 * (first + g)] = apart ? half[0] : 0;
    out.half_bias[2 * (first + g) + 1] = apart ? half[1] : 0;
    out.bias[first + g] = apart ? half[0] + half[1] : 0;
    if (!apart) out.bias[first] = out.half_bias[2 * first] += half[0] + half[1];
  }
}

// w8 of row r (0..15) and column k.
int weight_code(WeightFormat format, const RowBlock& rb, std::int64_t r, std::int64_t k) {
  const std::int64_t chunk = k / 64;             // 64 columns
  const std::int64_t quad = k % 64 / 4;          // 0..15
  const std::int64_t in_vector = r * 4 + k % 4;  // byte of a 64-byte vector
  if (is_byte(format)) {
    return static_cast<std::int8_t>(rb.codes[(chunk * 16 + quad) * 64 + in_vector]);
  }
  const std::uint8_t* codes = rb.codes + chunk * code_stride(format);
  const int nibble = codes[quad % 8 * 64 + in_vector] >> (quad / 8 * 4) & 15;
  int level;
  if (format == WeightFormat::q6) {
    const int high = codes[(8 + quad % 4) * 64 + in_vector] >> (quad / 4 * 2) & 3;
    const int code = nibble | high << 4;
    level = 4 * (code < 32 ? code : code - 64);
  } else {
    level = levels_of(format)[nibble];
  }
  if (!has_sub(format)) return level;
  const int sub = rb.sub[k / kSubGroup * kRowBlock + r];
  return (level * (sub < -127 ? -127 : sub) + 64) >> 7;
}

std::int32_t dot(const std::int8_t* q, const std::int8_t* w8, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += q[k] * w8[k];
  return sum;
}

// w8: the row's Kp codes.
float quantized_output(const MatmulArgs& a, const RowBlock& rb, std::int64_t r,
                       const std::int8_t* w8, std::int64_t m) {
  const QuantizedRows& x = *a.xq;
  const std::int64_t groups = x.cols / kActGroup;
  const std::int64_t columns = block_cols(a.w.format);
  float total = 0.0f;
  for (std::int64_t k = 0; k < x.cols; k += columns) {
    const std::int64_t n = x.cols - k < columns ? x.cols - k : columns;
    const std::int32_t sum = dot(x.q + m * x.stride + k, w8 + k, n);
    const float f = static_cast<float>(sum) * x.scale[m * groups + k / kActGroup];
    total = std::fmaf(f, f16_to_f32(rb.block[k / columns * kRowBlock + r]), total);
  }
  return total * rb.row[r];
}

// The same for formats with a scale per 32 columns.
float g32_output(const MatmulArgs& a, const RowBlock& rb, std::int64_t r, const std::int8_t* w8,
                 std::int64_t m) {
  const QuantizedRows& x = *a.xq;
  const std::int64_t groups = x.cols / kActGroup;
  float total = 0.0f;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t k = g * kActGroup;
    const std::int8_t* q = x.q + m * x.stride + k;
    const std::int32_t sum0 = dot(q, w8 + k, 32), sum1 = dot(q + 32, w8 + k + 32, 32);
    const float block0 = f16_to_f32(rb.block[2 * g * kRowBlock + r]);
    const float block1 = f16_to_f32(rb.block[(2 * g + 1) * kRowBlock + r]);
    const float t = std::fmaf(static_cast<float>(sum1), block1, static_cast<float>(sum0) * block0);
    total = std::fmaf(t, x.scale[m * groups + g], total);
  }
  return total * rb.row[r];
}

float float_output(const MatmulArgs& a, std::int64_t row, std::int64_t m) {
  const std::uint8_t* p = a.w.data + row / kRowBlock * a.w.row_block_bytes;
  const std::int64_t r = row % kRowBlock;
  const float* x = a.x + m * a.ldx;
  float acc = 0.0f;
  for (std::int64_t k = 0; k < a.w.cols; ++k) {
    float w;
    if (a.w.format == WeightFormat::f32) {
      std::memcpy(&w, p + (k * kRowBlock + r) * 4, 4);
    } else {
      std::uint16_t bits;
      std::memcpy(&bits, p + (k / 2 * kRowBlock + r) * 4 + k % 2 * 2, 2);
      w = bf16_to_f32(bits);
    }
    acc = std::fmaf(x[k], w, acc);
  }
  if (!a.bias) return acc;
  const float sum = acc + a.bias[row];
  return sum == sum ? sum : float_of(0x7fc00000u);
}

}  // namespace

void quantize_rows_scalar(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                          const QuantizedRows* out) {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t at = 0; at < k; at += out->group) {
      quantize_columns(x + i * ldx + at, k - at < out->group ? k - at : out->group, at,
                       out->slice(i, 1));
    }
  }
}

void matmul_scalar(const MatmulArgs* args) {
  const MatmulArgs& a = *args;
  const bool quantized = a.w.format != WeightFormat::f32 && a.w.format != WeightFormat::bf16;
  std::int8_t* w8 = static_cast<std::int8_t*>(a.scratch);
  for (std::int64_t n = a.block_begin * kRowBlock; n < a.block_end * kRowBlock; ++n) {
    if (n >= a.w.rows) break;
    RowBlock rb{};
    if (quantized) {
      rb = row_block(a.w, n / kRowBlock);
      for (std::int64_t k = 0; k < a.xq->cols; ++k) {
        w8[k] = static_cast<std::int8_t>(weight_code(a.w.format, rb, n % kRowBlock, k));
      }
    }
    for (std::int64_t m = 0; m < a.m; ++m) {
      a.out[m * a.ldo + n] = !quantized           ? float_output(a, n, m)
                             : is_g32(a.w.format) ? g32_output(a, rb, n % kRowBlock, w8, m)
                                                  : quantized_output(a, rb, n % kRowBlock, w8, m);
    }
  }
}

}  // namespace musespark

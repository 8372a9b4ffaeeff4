// The specification of attention over whole texts: one query row, one key after another.
#include <cstdint>

#include "kernels/attention/whole.h"
#include "kernels/detail/scalar_math.inl"
#include "kernels/entries.h"

namespace musespark {
namespace {

constexpr float kTiny = 1e-30f;

struct Quantizer {
  float scale, inverse;
  bool used;
};

Quantizer quantizer(std::uint32_t amax_bits) {
  const float amax = float_of(amax_bits);
  if (amax_bits >= 0x7f800000u) return {float_of(0x7fc00000u), 0.0f, false};
  if (amax < kTiny) return {0.0f, 0.0f, false};
  return {amax / 127.0f, 127.0f / amax, true};
}

// To the nearest integer, halfway to even; |x| < 2^22.
std::int32_t round_of(float x) { return static_cast<std::int32_t>((x + 0x1.8p23f) - 0x1.8p23f); }

std::int8_t code_of(float x, const Quantizer& by) {
  if (!by.used) return 0;
  return static_cast<std::int8_t>(round_of(max_of(-127.0f, min_of(127.0f, x * by.inverse))));
}

std::uint32_t larger(std::uint32_t bits, float x) {
  const std::uint32_t own = bits_of(x) & 0x7fffffffu;
  return own > bits ? own : bits;
}

float mean_of(const float* x, std::int64_t n, std::int64_t ld) {
  float sum = 0.0f;
  for (std::int64_t j = 0; j < n; ++j) sum += x[j * ld];
  return canonical(sum * (1.0f / static_cast<float>(n)));
}

void pack_keys(const float* k, std::int64_t ld, const WholeHead& to) {
  float mean[kWholeMostDim];
  for (std::int64_t d = 0; d < to.head_dim; ++d) mean[d] = mean_of(k + d, to.count, ld);
  for (std::int64_t g = 0; g < whole_pages(to); ++g) {
    const std::int64_t first = g * kWholePage;
    const std::int64_t end = first + kWholePage < to.count ? first + kWholePage : to.count;
    std::uint32_t amax = 0;
    for (std::int64_t j = first; j < end; ++j) {
      for (std::int64_t d = 0; d < to.head_dim; ++d) amax = larger(amax, k[j * ld + d] - mean[d]);
    }
    const Quantizer by = quantizer(amax);
    to.key_scale[g] = by.scale;
    for (std::int64_t j = first; j < end; ++j) {
      for (std::int64_t d = 0; d < to.head_dim; ++d) {
        to.keys[j * to.head_dim + d] =
            static_cast<std::uint8_t>(code_of(k[j * ld + d] - mean[d], by));
      }
    }
  }
}

void pack_values(const float* v, std::int64_t ld, const WholeHead& to) {
  for (std::int64_t d = 0; d < to.head_dim; ++d) {
    const float mean = mean_of(v + d, to.count, ld);
    std::uint32_t amax = 0;
    for (std::int64_t j = 0; j < to.count; ++j) amax = larger(amax, v[j * ld + d] - mean);
    const Quantizer by = quantizer(amax);
    to.value_mean[d] = mean;
    to.value_scale[d] = by.scale;
    for (std::int64_t j = 0; j < to.count; ++j) {
      to.values[j * to.head_dim + d] = static_cast<std::uint8_t>(code_of(v[j * ld + d] - mean, by));
    }
  }
}

std::int32_t signed_code(std::uint8_t byte) { return static_cast<std::int8_t>(byte); }

std::int32_t weight_of(std::int32_t dot, float c, float base) {
  const float t = max_of(-2.0f, min_of(kWholeTop, fma(static_cast<float>(dot), c, base)));
  const float shifted = t + 0x1.8p23f;
  const float r = shifted - 0x1.8p23f;
  const float f = t - r;
  float p = fma(kExp2[3], f, kExp2[2]);
  p = fma(p, f, kExp2[1]);
  p = fma(p, f, kExp2[0]);
  const std::int32_t power = static_cast<std::int32_t>(r) + 127;
  return round_of(p * float_of(static_cast<std::uint32_t>(power) << 23));
}

// f of the quantized query; code: its D codes.
float quantize_query(const WholeHead& head, const float* q, float factor, std::int8_t* code) {
  std::uint32_t amax = 0;
  for (std::int64_t d = 0; d < head.head_dim; ++d) amax = larger(amax, q[d]);
  const Quantizer by = quantizer(amax);
  for (std::int64_t d = 0; d < head.head_dim; ++d) code[d] = code_of(q[d], by);
  return by.scale * factor;
}

bool usable(const WholeHead& head, float f) {
  for (std::int64_t g = 0; g < whole_pages(head); ++g) {
    if (!(f * head.key_scale[g] < 1e30f)) return false;
  }
  return true;
}

void attend_row(const WholeHead& head, const float* q, float factor, float* out,
                std::int32_t* dots) {
  std::int8_t code[kWholeMostDim];
  const float f = quantize_query(head, q, factor, code);
  const std::int64_t n = head.count, dim = head.head_dim;
  if (!usable(head, f)) {
    for (std::int64_t d = 0; d < dim; ++d) out[d] = float_of(0x7fc00000u);
    return;
  }
  float m = -__builtin_inff();
  for (std::int64_t j = 0; j < n; ++j) {
    dots[j] = 0;
    for (std::int64_t d = 0; d < dim; ++d) dots[j] += code[d] * signed_code(head.keys[j * dim + d]);
    m = max_of(static_cast<float>(dots[j]) * (f * head.key_scale[j / kWholePage]), m);
  }
  const float base = kWholeTop - m;
  float sum = 0.0f;
  for (std::int64_t d = 0; d < dim; ++d) out[d] = 0.0f;
  for (std::int64_t first = 0; first < n; first += kWholeSumPages * kWholePage) {
    const std::int64_t most = first + kWholeSumPages * kWholePage, end = most < n ? most : n;
    std::int32_t weights = 0;
    for (std::int64_t j = first; j < end; ++j) {
      dots[j] = weight_of(dots[j], f * head.key_scale[j / kWholePage], base);
      weights += dots[j];
    }
    sum += static_cast<float>(weights);
    for (std::int64_t d = 0; d < dim; ++d) {
      std::int32_t low = 0, high = 0;
      for (std::int64_t j = first; j < end; ++j) {
        const std::int32_t value = signed_code(head.values[j * dim + d]);
        low += (dots[j] & 255) * value;
        high += (dots[j] >> 8) * value;
      }
      out[d] += fma(static_cast<float>(high), 256.0f, static_cast<float>(low));
    }
  }
  const float inverse = 1.0f / sum;
  for (std::int64_t d = 0; d < dim; ++d) {
    out[d] = canonical(fma(out[d], head.value_scale[d] * inverse, head.value_mean[d]));
  }
}

}  // namespace

void whole_pack_scalar(const float* k, const float* v, std::int64_t ld, const WholeHead* to) {
  pack_keys(k, ld, *to);
  pack_values(v, ld, *to);
}

void whole_attend_scalar(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                         float factor, float* out, std::int64_t ldo, void* scratch) {
  for (std::int64_t r = 0; r < rows; ++r) {
    attend_row(*head, q + r * ldq, factor, out + r * ldo, static_cast<std::int32_t*>(scratch));
  }
}

}  // namespace musespark

// Elementary functions of one float: the specification that math.inl follows lane by lane.
// Included once by each scalar.cc; every step is one IEEE operation, rounded to nearest even.
//
// Bounds over all floats (tests/python/test_rowwise_math.py measures them): exp 1 ulp, subnormal
// results included; tanh 2 ulp.
// NaN in, NaN out; the kernels write every NaN as 0x7fc00000.
#include <cstdint>

#include "kernels/detail/constants.h"

namespace musespark {
namespace {

std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
float abs_of(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

// The two comparisons that every level shares: a NaN on either side gives the second operand.
float max_of(float a, float b) { return a > b ? a : b; }
float min_of(float a, float b) { return a < b ? a : b; }

float canonical(float x) { return x != x ? float_of(0x7fc00000u) : x; }

float exp_of(float x) {
  x = max_of(-104.0f, min_of(89.0f, x));  // beyond: 0 and infinity anyway; NaN stays
  const float shifted = fma(x, kLog2E, 0x1.8p23f);
  const float n = shifted - 0x1.8p23f;
  float r = fma(n, -kLn2High, x);
  r = fma(n, -kLn2Low, r);
  float p = kExp[4];
  p = fma(p, r, kExp[3]);
  p = fma(p, r, kExp[2]);
  p = fma(p, r, kExp[1]);
  p = fma(p, r, kExp[0]);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  // p * 2^n in two steps, the first exact: one rounding, also into the subnormals.
  const std::int32_t k = static_cast<std::int32_t>(bits_of(shifted) - bits_of(0x1.8p23f));
  const std::int32_t half = k >> 1;
  const auto power = [](std::int32_t e) {
    return float_of((static_cast<std::uint32_t>(e) + 127u) << 23);
  };
  return p * power(half) *
         power(static_cast<std::int32_t>(static_cast<std::uint32_t>(k) -
                                         static_cast<std::uint32_t>(half)));
}

float tanh_of(float x) {
  const float a = min_of(10.0f, abs_of(x));
  const float u = a * a;
  float p = kTanh[4];
  p = fma(p, u, kTanh[3]);
  p = fma(p, u, kTanh[2]);
  p = fma(p, u, kTanh[1]);
  p = fma(p, u, kTanh[0]);
  const float small = fma(p * u, a, a);
  const float large = 1.0f - 2.0f / (exp_of(a + a) + 1.0f);
  const float y = a < 0.625f ? small : large;
  return float_of(bits_of(y) | (bits_of(x) & 0x80000000u));
}

}  // namespace
}  // namespace musespark

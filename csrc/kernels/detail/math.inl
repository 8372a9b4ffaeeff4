// Elementary functions of sixteen lanes over the vector vocabulary: the operations of
// scalar_math.inl (and of the activations in rowwise/scalar.cc) in the same order.
#pragma once

#include <cstdint>

#include "kernels/detail/constants.h"

namespace musespark {
namespace {

MS_INLINE vf vabs(vf x) { return vfloat(iand(vbits(x), iset(0x7fffffff))); }
MS_INLINE vf vnegate(vf x) {
  return vfloat(ixor(vbits(x), iset(static_cast<std::int32_t>(0x80000000u))));
}
// The one NaN that is ever written.
MS_INLINE vf vcanonical(vf x) { return vselect(vunordered(x), vfloat(iset(0x7fc00000)), x); }
MS_INLINE float canonical(float x) {
  return x != x ? __builtin_bit_cast(float, std::uint32_t{0x7fc00000u}) : x;
}

// exp of x <= 89 or NaN: vexp, less the clamp from above.
MS_INLINE vf vexp_below_89(vf x) {
  x = vmax(vset(-104.0f), x);
  const vf shift = vset(0x1.8p23f);
  const vf n = vsub(vfma(x, vset(kLog2E), shift), shift);
  vf r = vfma(n, vset(-kLn2High), x);
  r = vfma(n, vset(-kLn2Low), r);
  vf p = vset(kExp[4]);
  p = vfma(p, r, vset(kExp[3]));
  p = vfma(p, r, vset(kExp[2]));
  p = vfma(p, r, vset(kExp[1]));
  p = vfma(p, r, vset(kExp[0]));
  p = vfma(p, r, vset(1.0f));
  p = vfma(p, r, vset(1.0f));
  return vscale2(p, n);
}

MS_INLINE vf vexp(vf x) { return vexp_below_89(vmin(vset(89.0f), x)); }

MS_INLINE vf vtanh(vf x) {
  const vf a = vmin(vset(10.0f), vabs(x));
  const vf u = vmul(a, a);
  vf p = vset(kTanh[4]);
  p = vfma(p, u, vset(kTanh[3]));
  p = vfma(p, u, vset(kTanh[2]));
  p = vfma(p, u, vset(kTanh[1]));
  p = vfma(p, u, vset(kTanh[0]));
  const vf small = vfma(vmul(p, u), a, a);
  const vf one = vset(1.0f);
  const vf large = vsub(one, vdiv(vset(2.0f), vadd(vexp(vadd(a, a)), one)));
  const vf y = vselect(vless(a, vset(0.625f)), small, large);
  const vi sign = iset(static_cast<std::int32_t>(0x80000000u));
  return vfloat(ior(vbits(y), iand(vbits(x), sign)));
}

// 1 + e^-x, the denominator of the logistic function.
MS_INLINE vf vlogistic_denominator(vf x) { return vadd(vset(1.0f), vexp(vnegate(x))); }

MS_INLINE vf vgelu(vf x) {
  const vf one = vset(1.0f);
  const vf z = vmul(vabs(x), vset(kSqrtHalf));
  const vf t = vdiv(one, vfma(z, vset(kErfcSlope), one));
  vf p = vset(kErfc[8]);
  for (int i = 7; i >= 0; --i) p = vfma(p, t, vset(kErfc[i]));
  const vf tail = vmul(vexp(vnegate(vmul(z, z))), vmul(t, p));
  return vmul(x, vselect(vless(x, vset(0.0f)), tail, vsub(one, tail)));
}

MS_INLINE vf vgelu_tanh(vf x) {
  const vf cubed = vmul(vmul(x, x), x);
  const vf inner = vmul(vfma(cubed, vset(kGeluCube), x), vset(kGeluInner));
  return vdiv(x, vlogistic_denominator(inner));
}

}  // namespace
}  // namespace musespark

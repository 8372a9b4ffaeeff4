// Elementary functions in double whose bits we own: fixed sequences of IEEE additions,
// multiplications, divisions and explicit fused multiply-adds, no libm function but fma itself
// (which IEEE 754 defines to the bit). Rope tables and the sampler are made with these.
//
// They expect FloatEnv's environment. Errors are in units in the last place of the exact result,
// over the stated domain, and are tested against correctly rounded references.
#pragma once

namespace musespark::math64 {

// Below 1 ulp for results that are normal numbers; 0 and infinity outside the range, gradual
// underflow between. NaN gives NaN.
double exp(double x);

// Below 1 ulp for x > 0, subnormals included. log(0) = -inf, NaN for x < 0.
double log(double x);

// Below 1 ulp for x > 0 and a normal result. pow(x, 0) = 1; pow(0, y) = 0 for y > 0 and inf for
// y < 0; NaN for x < 0 (no caller has negative bases).
double pow(double x, double y);

// Below 1 ulp for |x| <= kTrigLimit. NaN beyond: a position is never so large, and a silent loss
// of the argument's bits would be worse.
inline constexpr double kTrigLimit = 1048576.0;  // 2^20
double sin(double x);
double cos(double x);

}  // namespace musespark::math64

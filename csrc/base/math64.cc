#include "base/math64.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace musespark::math64 {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// ln 2 = kLn2High + kLn2Low. The high part has 42 significant bits: its product with an exponent of
// a double (11 bits) is exact.
constexpr double kLn2High = 0x1.62e42fefa38p-1;
constexpr double kLn2Low = 0x1.ef35793c7673p-45;
constexpr double kLog2E = 0x1.71547652b82fep+0;

// pi / 2 in three pieces of 53 bits.
constexpr double kHalfPi1 = 0x1.921fb54442d18p+0;
constexpr double kHalfPi2 = 0x1.1a62633145c07p-54;
constexpr double kHalfPi3 = -0x1.f1976b7ed8fbcp-110;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;

// 1.5 * 2^52: adding it rounds |x| < 2^51 to an integer in the low bits, ties to even.
constexpr double kRounder = 0x1.8p52;

// An unevaluated sum: |low| is at most half a unit in the last place of high.
struct Double2 {
  double high;
  double low;
};

// a + b with its rounding error; needs |a| >= |b| or a = 0.
Double2 fast_two_sum(double a, double b) {
  const double sum = a + b;
  return {sum, b - (sum - a)};
}

Double2 two_sum(double a, double b) {
  const double sum = a + b;
  const double b_seen = sum - a;
  return {sum, (a - (sum - b_seen)) + (b - b_seen)};
}

Double2 two_product(double a, double b) {
  const double product = a * b;
  return {product, std::fma(a, b, -product)};
}

double scale_by_power(double x, int exponent) {
  // 2^exponent itself may be subnormal or too large for one factor; two factors never round twice
  // unless the result is subnormal, and then only the second one rounds.
  const auto power = [](int e) {
    return std::bit_cast<double>(static_cast<std::uint64_t>(e + 1023) << 52);
  };
  if (exponent > 1023) return x * power(1023) * power(exponent - 1023);
  if (exponent < -1022) return x * power(exponent + 1000) * power(-1000);
  return x * power(exponent);
}

// exp(x + x_low) for |x_low| far below x; x is a number.
double exp_sum(double x, double x_low) {
  if (x > 709.79) return kInfinity;
  if (x < -745.14) return 0.0;
  const double k = std::fma(x, kLog2E, kRounder) - kRounder;
  const double r_high = std::fma(-k, kLn2High, x);
  const double r_low = std::fma(-k, kLn2Low, x_low);
  const auto [r, rest] = two_sum(r_high, r_low);
  // Taylor to r^13 for |r| <= 0.347: the first term left out is below 2^-57 of the result.
  static constexpr double kInverseFactorials[] = {
      1.0 / 2.0,       1.0 / 6.0,        1.0 / 24.0,        1.0 / 120.0,
      1.0 / 720.0,     1.0 / 5040.0,     1.0 / 40320.0,     1.0 / 362880.0,
      1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0};
  double p = kInverseFactorials[11];
  for (int i = 10; i >= 0; --i) p = std::fma(p, r, kInverseFactorials[i]);
  const auto [one_plus_r, error] = fast_two_sum(1.0, r);
  const double tail = std::fma(p, r * r, error + std::fma(r, rest, rest));
  return scale_by_power(one_plus_r + tail, static_cast<int>(k));
}

// x = mantissa * 2^exponent with mantissa in [sqrt(1/2), sqrt(2)), for finite x > 0.
double split(double x, int* exponent) {
  int shift = 0;
  if (x < std::numeric_limits<double>::min()) {
    x *= 0x1p54;
    shift = 54;
  }
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  constexpr std::uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const auto steps = static_cast<std::int64_t>(bits - kSqrtHalf) >> 52;
  *exponent = static_cast<int>(steps) - shift;
  return std::bit_cast<double>(bits - (static_cast<std::uint64_t>(steps) << 52));
}

// log(x) with about 64 good bits, for finite x > 0.
//
// log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716, as the series s + s^3/3 + s^5/5 ...:
// the terms up to s^3 in two doubles, the rest (below 2^-11 of the sum) in one.
Double2 log_sum(double x) {
  int exponent;
  const double m = split(x, &exponent);
  const double numerator = m - 1.0;  // exact: m is within a factor 2 of 1
  const Double2 denominator = two_sum(m, 1.0);
  const double s = numerator / denominator.high;
  // The remainder of the division gives the quotient's low part.
  const double remainder = std::fma(-s, denominator.high, numerator) - s * denominator.low;
  const double s_low = remainder / denominator.high;
  const Double2 square = two_product(s, s);
  const double square_low = std::fma(2.0 * s, s_low, square.low);
  // sum over n >= 2 of z^(n-2) / (2n + 1): left out below 2^-62 of the whole.
  static constexpr double kOddInverses[] = {1.0 / 5.0,  1.0 / 7.0,  1.0 / 9.0,  1.0 / 11.0,
                                            1.0 / 13.0, 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0,
                                            1.0 / 21.0, 1.0 / 23.0, 1.0 / 25.0};
  double p = kOddInverses[10];
  for (int i = 9; i >= 0; --i) p = std::fma(p, square.high, kOddInverses[i]);
  // q = z/3 + z^2 p in two doubles, then log m = 2 (s + s q).
  constexpr double kThirdHigh = 0x1.5555555555555p-2;
  constexpr double kThirdLow = 0x1.5555555555555p-56;
  const Double2 third = two_product(square.high, kThirdHigh);
  const double third_low = third.low + std::fma(square.high, kThirdLow, square_low * kThirdHigh);
  const Double2 higher = two_product(square.high * square.high, p);
  Double2 q = fast_two_sum(third.high, higher.high);
  q.low += third_low + higher.low;
  const Double2 sq = two_product(s, q.high);
  const double sq_low = sq.low + std::fma(s, q.low, s_low * q.high);
  Double2 half_log = fast_two_sum(s, sq.high);
  half_log.low += s_low + sq_low;
  // exponent * ln 2: the high product is exact.
  const double e = static_cast<double>(exponent);
  Double2 result = two_sum(e * kLn2High, 2.0 * half_log.high);
  result.low += std::fma(e, kLn2Low, 2.0 * half_log.low);
  return fast_two_sum(result.high, result.low);
}

// |x| <= kTrigLimit as quadrant * pi/2 + (r.high + r.low), |r| <= pi/4 and a little.
Double2 reduce(double x, int* quadrant) {
  const double k = std::fma(x, kTwoOverPi, kRounder) - kRounder;
  *quadrant = static_cast<int>(static_cast<std::int64_t>(k) & 3);
  const double first = std::fma(-k, kHalfPi1, x);  // exact: a multiple of 2^-53 below 1
  const Double2 second = two_product(k, kHalfPi2);
  const Double2 difference = two_sum(first, -second.high);
  return two_sum(difference.high, difference.low - std::fma(k, kHalfPi3, second.low));
}

// Taylor series on |r| <= 0.786, left out below 2^-60 of the result; the low part enters by the
// first derivative.
double sin_kernel(Double2 r) {
  static constexpr double kTerms[] = {
      -1.0 / 6.0,        1.0 / 120.0,        -1.0 / 5040.0,          1.0 / 362880.0,
      -1.0 / 39916800.0, 1.0 / 6227020800.0, -1.0 / 1307674368000.0, 1.0 / 355687428096000.0};
  const double z = r.high * r.high;
  double p = kTerms[7];
  for (int i = 6; i >= 0; --i) p = std::fma(p, z, kTerms[i]);
  const double cosine = std::fma(-0.5, z, 1.0);
  return r.high + std::fma(r.high * z, p, r.low * cosine);
}

double cos_kernel(Double2 r) {
  static constexpr double kTerms[] = {
      1.0 / 24.0,        -1.0 / 720.0,         1.0 / 40320.0,         -1.0 / 3628800.0,
      1.0 / 479001600.0, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
  const double z = r.high * r.high;
  double p = kTerms[6];
  for (int i = 5; i >= 0; --i) p = std::fma(p, z, kTerms[i]);
  const double half = 0.5 * z;
  const Double2 head = fast_two_sum(1.0, -half);
  return head.high + std::fma(z * z, p, head.low - r.high * r.low);
}

double trig(double x, int shift) {
  if (!(x >= -kTrigLimit && x <= kTrigLimit)) return kNan;
  if (x == 0.0 && shift == 0) return x;  // keeps the sign of zero
  int quadrant;
  const Double2 r = reduce(x, &quadrant);
  const int turned = (quadrant + shift) & 3;
  const double value = turned & 1 ? cos_kernel(r) : sin_kernel(r);
  return turned & 2 ? -value : value;
}

}  // namespace

double exp(double x) { return x == x ? exp_sum(x, 0.0) : kNan; }

double log(double x) {
  if (!(x > 0.0)) return x == 0.0 ? -kInfinity : kNan;
  if (x == kInfinity) return x;
  const Double2 sum = log_sum(x);
  return sum.high + sum.low;
}

double pow(double x, double y) {
  if (y == 0.0) return 1.0;
  if (!(x >= 0.0) || y != y) return kNan;
  if (x == 0.0) return y > 0.0 ? 0.0 : kInfinity;
  if (x == 1.0) return 1.0;
  if (x == kInfinity) return y > 0.0 ? kInfinity : 0.0;
  const Double2 logarithm = log_sum(x);
  const Double2 product = two_product(logarithm.high, y);
  if (!(product.high < 1e4)) return kInfinity;
  if (!(product.high > -1e4)) return 0.0;
  return exp_sum(product.high, std::fma(logarithm.low, y, product.low));
}

double sin(double x) { return trig(x, 0); }

double cos(double x) { return trig(x, 1); }

}  // namespace musespark::math64

#include "base/half.h"

#include <bit>

namespace musespark {
namespace {

constexpr std::uint32_t kF32Infinity = 0x7f800000;
constexpr std::uint32_t kF32MagnitudeMask = 0x7fffffff;

// value / 2^shift, rounded to nearest, ties to even; 0 < shift < 32.
std::uint32_t shift_right_even(std::uint32_t value, int shift) {
  const std::uint32_t quotient = value >> shift;
  const std::uint32_t rest = value & ((1u << shift) - 1);
  const std::uint32_t half = 1u << (shift - 1);
  return quotient + (rest > half || (rest == half && (quotient & 1)));
}

}  // namespace

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1f;
  std::uint32_t mantissa = bits & 0x3ff;
  if (exponent == 0x1f) {
    const std::uint32_t quiet = mantissa ? 0x00400000u : 0u;
    return std::bit_cast<float>(sign | kF32Infinity | quiet | (mantissa << 13));
  }
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // Subnormal: mantissa * 2^-24; move its leading one to bit 10, the hidden place.
  const int shift = std::countl_zero(mantissa) - 21;
  mantissa = (mantissa << shift) & 0x3ff;
  return std::bit_cast<float>(sign | static_cast<std::uint32_t>(113 - shift) << 23 |
                              (mantissa << 13));
}

std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & kF32MagnitudeMask;
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  if (magnitude > kF32Infinity) return kF16CanonicalNan;
  if (magnitude >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7c00);  // >= 2^16
  if (magnitude >= 0x38800000) {  // >= 2^-14: normal; rounding may carry up to infinity
    return static_cast<std::uint16_t>(sign | shift_right_even(magnitude - 0x38000000, 13));
  }
  const int exponent = static_cast<int>(magnitude >> 23);
  if (exponent < 102) return static_cast<std::uint16_t>(sign);  // below half the least subnormal
  const std::uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
  return static_cast<std::uint16_t>(sign | shift_right_even(mantissa, 126 - exponent));
}

float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & kF32MagnitudeMask) > kF32Infinity) return kBf16CanonicalNan;
  return static_cast<std::uint16_t>(shift_right_even(bits, 16));
}

void f16_to_f32(const std::uint16_t* from, float* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = f16_to_f32(from[i]);
}

void f32_to_f16(const float* from, std::uint16_t* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = f32_to_f16(from[i]);
}

void bf16_to_f32(const std::uint16_t* from, float* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(from[i]);
}

void f32_to_bf16(const float* from, std::uint16_t* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = f32_to_bf16(from[i]);
}

}  // namespace musespark

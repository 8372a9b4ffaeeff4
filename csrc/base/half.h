// Scalar codecs of the two 16-bit floating point formats; the specification of every vector twin.
//
//   f16   s eeeee mmmmmmmmmm      1 + 5 + 10 bits, bias 15, IEEE 754 binary16
//   bf16  s eeeeeeee mmmmmmm      1 + 8 + 7 bits, the upper half of an f32
//
// Encoding rounds to nearest, ties to even, keeps subnormals and signed zeros, overflows to
// infinity, and writes every NaN as the one canonical NaN (f16 0x7e00, bf16 0x7fc0: positive,
// quiet, payload zero). Decoding is exact and keeps a NaN's sign and payload, with f16 setting the
// quiet bit: what VCVTPH2PS and FCVT do. None of this reads MXCSR or FPCR: it is integer work.
#pragma once

#include <cstdint>

namespace musespark {

inline constexpr std::uint16_t kF16CanonicalNan = 0x7e00;
inline constexpr std::uint16_t kBf16CanonicalNan = 0x7fc0;
inline constexpr std::uint32_t kF32CanonicalNan = 0x7fc00000;

float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_f16(float value);
float bf16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_bf16(float value);

// The same over `count` values; the ranges may not overlap.
void f16_to_f32(const std::uint16_t* from, float* to, std::int64_t count);
void f32_to_f16(const float* from, std::uint16_t* to, std::int64_t count);
void bf16_to_f32(const std::uint16_t* from, float* to, std::int64_t count);
void f32_to_bf16(const float* from, std::uint16_t* to, std::int64_t count);

}  // namespace musespark

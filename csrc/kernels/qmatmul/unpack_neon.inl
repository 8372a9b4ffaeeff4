// Codes of every quantized format to int8 weights w8: 16 bytes [row][k % 4] of four rows, the shape
// that SDOT takes, so that codes of 8 bits need no unpacking at all.
//
// w8 = (level * sub + 64) >> 7 is exact in 16 bits: p = level * sub, |p| <= 127 * 128, and RADDHN's
// (p + p + 128) >> 8 is the rounded shift and the narrowing in one, on any vector pipe (RSHRN, the
// same in words, wants a shifter). For 32 weights of q4: AND, USHR, 2 TBL, 2 SMULL, 2 SMULL2,
// 2 RADDHN, 2 RADDHN2 = 12 instructions; of q6 16; of a table without sub-scales 4.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/detail/unroll.inl"
#include "kernels/qmatmul/layout.inl"

namespace musespark {
namespace {

constexpr int kParts = 4;  // of a row block: rows 4 * part .. 4 * part + 3

struct Quads {  // quad v (low) and quad v + 8 (high) of 64 columns
  int8x16_t low, high;
};

MS_INLINE int8x16_t level_bytes(WeightFormat format) { return vld1q_s8(levels_of(format)); }

// The part's sub-scales of 32 columns, -128 taken as -127, each in the four bytes of its row.
MS_INLINE int8x16_t sub_bytes(const std::int8_t* sub, int part) {
  static constexpr std::uint8_t kRow[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  const uint8x16_t row = vaddq_u8(vld1q_u8(kRow), vdupq_n_u8(static_cast<std::uint8_t>(4 * part)));
  return vqtbl1q_s8(vmaxq_s8(vld1q_s8(sub), vdupq_n_s8(-127)), row);
}

MS_INLINE int8x16_t scaled(int8x16_t level, int8x16_t sub) {
  const int16x8_t p0 = vmull_s8(vget_low_s8(level), vget_low_s8(sub));
  const int16x8_t p1 = vmull_high_s8(level, sub);
  return vraddhn_high_s16(vraddhn_s16(p0, p0), p1, p1);
}

MS_INLINE Quads nibble_levels(uint8x16_t code, int8x16_t levels) {
  return {vqtbl1q_s8(levels, vandq_u8(code, vdupq_n_u8(15))),
          vqtbl1q_s8(levels, vshrq_n_u8(code, 4))};
}

// 4 * code of code vector v: the nibbles at bits 2..5, the high bits at 6..7. Those of quad v lie
// at bits 2 * kHalf of `high`, those of quad v + 8 at 2 * kHalf + 4.
template <int kHalf>  // v / 4
MS_INLINE Quads q6_levels(uint8x16_t code, uint8x16_t high) {
  const uint8x16_t low_bits = kHalf == 0 ? high : vshrq_n_u8(high, 2);
  const uint8x16_t low_nibble = vshlq_n_u8(code, 2);
  const uint8x16_t high_nibble = vandq_u8(vshrq_n_u8(code, 2), vdupq_n_u8(0x3c));
  return {vreinterpretq_s8_u8(vsliq_n_u8(low_nibble, low_bits, 6)),
          vreinterpretq_s8_u8(vsliq_n_u8(high_nibble, vshrq_n_u8(high, 4 + 2 * kHalf), 6))};
}

// Calls use(v, quads) for the eight code vectors of 64 columns, v a Count. `levels` are those of a
// 4-bit format without sub-scales.
template <WeightFormat kFormat, class Use>
MS_INLINE void each_quads(const std::uint8_t* codes, const std::int8_t* sub, int8x16_t levels,
                          int part, Use use) {
  codes += 16 * part;
  if constexpr (is_byte(kFormat)) {
    unroll<8>([&](auto v) MS_LAMBDA {
      use(v, Quads{vreinterpretq_s8_u8(vld1q_u8(codes + 64 * v)),
                   vreinterpretq_s8_u8(vld1q_u8(codes + 64 * (v + 8)))});
    });
  } else if constexpr (!has_sub(kFormat)) {
    unroll<8>([&](auto v) MS_LAMBDA { use(v, nibble_levels(vld1q_u8(codes + 64 * v), levels)); });
  } else {
    const int8x16_t sub_low = sub_bytes(sub, part);
    const int8x16_t sub_high = sub_bytes(sub + kRowBlock, part);
    const int8x16_t q4_levels = level_bytes(WeightFormat::q4);
    unroll<8>([&](auto v) MS_LAMBDA {
      const uint8x16_t code = vld1q_u8(codes + 64 * v);
      Quads level;
      if constexpr (kFormat == WeightFormat::q4) {
        level = nibble_levels(code, q4_levels);
      } else {
        level = q6_levels<v.value / 4>(code, vld1q_u8(codes + 512 + 64 * (v % 4)));
      }
      use(v, Quads{scaled(level.low, sub_low), scaled(level.high, sub_high)});
    });
  }
}

}  // namespace
}  // namespace musespark

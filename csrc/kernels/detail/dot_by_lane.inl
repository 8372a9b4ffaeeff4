// What dot_neon.inl and dot_i8mm.inl share: sixteen lanes in four registers, weights taken by lane.
// Four rows x 16 lanes x 16 codes: 64 dot products, 20 loads, and 16 EOR at the neon level.
#pragma once

#include <cstdint>

namespace musespark {
namespace {

using dot_weight = std::int8_t;
constexpr int kTileRows = 4;
constexpr int kTileBlocks = 1;  // 16 accumulators, 4 vectors of codes, 4 of weights
constexpr int kDotSteps = 4;    // one load of weights serves four steps, each a lane of it

struct vcodes {
  uint8x16_t a, b, c, d;
};

// Four lanes of load_codes, and of vdot with step kStep of the weights.
template <bool kUnsignedWeights>
MS_INLINE uint8x16_t dot_codes(uint8x16_t codes);
template <bool kUnsignedWeights, int kStep>
MS_INLINE int32x4_t dot_lane(int32x4_t acc, uint8x16_t codes, int8x16_t w);

template <bool kUnsignedWeights>
MS_INLINE vcodes load_codes(const std::uint8_t* p) {
  return {dot_codes<kUnsignedWeights>(vld1q_u8(p)), dot_codes<kUnsignedWeights>(vld1q_u8(p + 16)),
          dot_codes<kUnsignedWeights>(vld1q_u8(p + 32)),
          dot_codes<kUnsignedWeights>(vld1q_u8(p + 48))};
}

template <bool kUnsignedWeights, int kStep>
MS_INLINE vi vdot(vi acc, vcodes codes, const dot_weight* w) {
  const int8x16_t weights = vld1q_s8(w);
  return {dot_lane<kUnsignedWeights, kStep>(acc.a, codes.a, weights),
          dot_lane<kUnsignedWeights, kStep>(acc.b, codes.b, weights),
          dot_lane<kUnsignedWeights, kStep>(acc.c, codes.c, weights),
          dot_lane<kUnsignedWeights, kStep>(acc.d, codes.d, weights)};
}

// The low bytes: of -127..127 or of 0..255.
MS_INLINE void store_weights(dot_weight* to, vi x) {
  const int16x8_t low = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b));
  const int16x8_t high = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
  vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

MS_INLINE void store_page_weights(dot_weight* to, const vi (&x)[4]) {
  for (int b = 0; b < 4; ++b) store_weights(to + 16 * b, x[b]);
}

MS_INLINE void store_planes(dot_weight* low, dot_weight* high, const vi (&x)[4]) {
  for (int b = 0; b < 4; ++b) {
    store_weights(low + 16 * b, iand(x[b], iset(255)));
    store_weights(high + 16 * b, ishr<8>(x[b]));
  }
}

}  // namespace
}  // namespace musespark

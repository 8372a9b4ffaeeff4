// Integer dot products on AArch64 with the dot product extension, after vector_neon.inl.
// dot_avx512vnni.inl has the comments.
//
// SDOT is signed times signed and UDOT unsigned times unsigned, so codes change their sign bit as
// they are loaded (once for all rows of a tile): keys become signed and need no bias; values become
// unsigned (+128), which starting the sum at -128 * the sum of the weights undoes.
#include <cstdint>

namespace musespark {
namespace {

using dot_weight = std::int8_t;
constexpr int kTileRows = 4;
constexpr int kTileBlocks = 1;  // 16 accumulators, 4 vectors of codes, 4 of weights
constexpr int kDotSteps = 4;    // one load of weights serves four steps, each a lane of it
constexpr int kKeyBias = 0;
constexpr int kValueBias = -128;

struct vcodes {
  uint8x16_t a, b, c, d;
};

template <bool kUnsignedWeights>
MS_INLINE vcodes load_codes(const std::uint8_t* p) {
  const uint8x16_t sign = vdupq_n_u8(0x80);
  return {veorq_u8(vld1q_u8(p), sign), veorq_u8(vld1q_u8(p + 16), sign),
          veorq_u8(vld1q_u8(p + 32), sign), veorq_u8(vld1q_u8(p + 48), sign)};
}

template <bool kUnsignedWeights, int kStep>
MS_INLINE int32x4_t dot_lane(int32x4_t acc, uint8x16_t codes, int8x16_t w) {
  if constexpr (kUnsignedWeights) {
    return vreinterpretq_s32_u32(
        vdotq_laneq_u32(vreinterpretq_u32_s32(acc), codes, vreinterpretq_u8_s8(w), kStep));
  } else {
    return vdotq_laneq_s32(acc, vreinterpretq_s8_u8(codes), w, kStep);
  }
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

}  // namespace
}  // namespace musespark

// Integer dot products on AArch64 with the dot product extension, after vector_neon.inl.
// dot_avx512vnni.inl has the comments.
//
// SDOT is signed times signed and UDOT unsigned times unsigned, so codes change their sign bit as
// they are loaded (once for all rows of a tile): keys become signed and need no bias; values become
// unsigned (+128), which starting the sum at -128 * the sum of the weights undoes.
#include "kernels/detail/dot_by_lane.inl"

namespace musespark {
namespace {

constexpr int kKeyBias = 0;
constexpr int kValueBias = -128;

template <bool kUnsignedWeights>
MS_INLINE uint8x16_t dot_codes(uint8x16_t codes) {
  return veorq_u8(codes, vdupq_n_u8(0x80));
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

}  // namespace
}  // namespace musespark

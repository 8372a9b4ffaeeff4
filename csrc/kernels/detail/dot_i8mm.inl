// Integer dot products on AArch64 with the int8 matrix extension, after vector_neon.inl: its USDOT
// and SUDOT take codes as they are stored. dot_avx512vnni.inl has the comments.
#include "kernels/detail/dot_by_lane.inl"

namespace musespark {
namespace {

constexpr int kKeyBias = -128;
constexpr int kValueBias = 0;

template <bool kUnsignedWeights>
MS_INLINE uint8x16_t dot_codes(uint8x16_t codes) {
  return codes;
}

template <bool kUnsignedWeights, int kStep>
MS_INLINE int32x4_t dot_lane(int32x4_t acc, uint8x16_t codes, int8x16_t w) {
  if constexpr (kUnsignedWeights) {
    return vsudotq_laneq_s32(acc, vreinterpretq_s8_u8(codes), vreinterpretq_u8_s8(w), kStep);
  } else {
    return vusdotq_laneq_s32(acc, codes, w, kStep);
  }
}

}  // namespace
}  // namespace musespark

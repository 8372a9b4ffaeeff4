// quantize_rows for 128-bit vectors: one group of 64 columns = sixteen vectors.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/quantize.inl"

namespace musespark {
namespace {

inline std::int32_t group_amax(const float* x, std::int64_t left) {
  float copy[kActGroup];
  x = whole_group(x, left, copy);
  const int32x4_t no_sign = vdupq_n_s32(0x7fffffff);
  int32x4_t amax_i32x4 = vdupq_n_s32(0);
  for (int i = 0; i < 16; ++i) {
    const int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(x + 4 * i));
    amax_i32x4 = vmaxq_s32(amax_i32x4, vandq_s32(bits, no_sign));
  }
  return vmaxvq_s32(amax_i32x4);
}

inline void group_codes(const float* x, std::int64_t left, float inverse, std::int8_t* q,
                        std::int32_t* sum) {
  float copy[kActGroup];
  x = whole_group(x, left, copy);
  for (int i = 0; i < 2; ++i) {
    int32x4_t sum_i32x4 = vdupq_n_s32(0);
    for (int j = 0; j < 2; ++j) {
      int16x4_t word[4];
      for (int t = 0; t < 4; ++t) {
        const float32x4_t v = vld1q_f32(x + 32 * i + 16 * j + 4 * t);
        word[t] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v, inverse)));
      }
      // Saturates at 127; -128 is out of reach as 128 is, but the contract clamps.
      const int8x16_t code = vmaxq_s8(vcombine_s8(vqmovn_s16(vcombine_s16(word[0], word[1])),
                                                  vqmovn_s16(vcombine_s16(word[2], word[3]))),
                                      vdupq_n_s8(-127));
      sum_i32x4 = vdotq_s32(sum_i32x4, code, vdupq_n_s8(1));
      vst1q_s8(q + 32 * i + 16 * j, code);
    }
    sum[i] = vaddvq_s32(sum_i32x4);
  }
}

inline std::int32_t long_amax(const float* x, std::int64_t n) { return amax_by_groups(x, n); }
inline std::int32_t long_codes(const float* x, std::int64_t n, float inverse, std::int8_t* q) {
  return codes_by_groups(x, n, inverse, q);
}

}  // namespace
}  // namespace musespark

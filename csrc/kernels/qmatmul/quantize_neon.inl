// quantize_rows for 128-bit vectors: one group of 64 columns = sixteen vectors.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// x: 64 floats.
inline void quantize_64(const float* x, std::int8_t* q, float* scale, std::int32_t* bias,
                        std::int32_t* half_bias) {
  const int32x4_t no_sign = vdupq_n_s32(0x7fffffff);
  int32x4_t amax_i32x4 = vdupq_n_s32(0);
  for (int i = 0; i < 16; ++i) {
    const int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(x + 4 * i));
    amax_i32x4 = vmaxq_s32(amax_i32x4, vandq_s32(bits, no_sign));
  }
  const std::int32_t amax_bits = vmaxvq_s32(amax_i32x4);
  const float amax = __builtin_bit_cast(float, amax_bits);
  if (amax_bits >= 0x7f800000 || amax < 1e-30f) {
    *scale = __builtin_bit_cast(float, amax_bits >= 0x7f800000 ? 0x7fc00000u : 0u);
    *bias = half_bias[0] = half_bias[1] = 0;
    __builtin_memset(q, 0, kActGroup);
    return;
  }
  *scale = amax / 127.0f;
  const float inverse = 127.0f / amax;
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
    half_bias[i] = -128 * vaddvq_s32(sum_i32x4);
  }
  *bias = half_bias[0] + half_bias[1];
}

}  // namespace
}  // namespace musespark

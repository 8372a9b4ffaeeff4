// Image kernels for AArch64. A weight's halves are multiplied apart and put together at the end:
// exact modulo 2^32 (resample_x86.inl has the argument).
#include <arm_neon.h>

#include <cstdint>

#include "kernels/entries.h"
#include "kernels/image/plain.inl"

namespace musespark {
namespace {

struct halves {
  int32x4_t high, low;
};

inline halves zero_halves() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }

inline int32x4_t total(halves sums) { return vaddq_s32(vshlq_n_s32(sums.high, 16), sums.low); }

// Bytes of two pixels to words, a pixel in each half; 255 gives a zero byte.
template <int kChannels>
inline uint8x16_t pixel_order(int first) {
  std::uint8_t order[16];
  for (int i = 0; i < 16; ++i) {
    const int pixel = first + i / 8, channel = i % 8 / 2;
    const bool zero = i % 2 == 1 || channel >= kChannels;
    order[i] = static_cast<std::uint8_t>(zero ? 255 : pixel * kChannels + channel);
  }
  return vld1q_u8(order);
}

template <int kChannels>
void pixel_at(const ResampleAxis* axis, std::int64_t index, const uint8x16_t (&order)[2],
              const std::uint8_t* in, std::uint8_t* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  const std::uint8_t* from = in + axis->first[index] * kChannels;
  halves sums = zero_halves();
  for (std::int64_t t = 0; t < axis->count[index]; t += 4) {
    const uint8x16_t pixels = vld1q_u8(from + t * kChannels);
    const int16x8_t p01 = vreinterpretq_s16_u8(vqtbl1q_u8(pixels, order[0]));
    const int16x8_t p23 = vreinterpretq_s16_u8(vqtbl1q_u8(pixels, order[1]));
    const int16x4_t h = vld1_s16(high + t), l = vld1_s16(low + t);
    sums.high = vmlal_lane_s16(sums.high, vget_low_s16(p01), h, 0);
    sums.high = vmlal_lane_s16(sums.high, vget_high_s16(p01), h, 1);
    sums.high = vmlal_lane_s16(sums.high, vget_low_s16(p23), h, 2);
    sums.high = vmlal_lane_s16(sums.high, vget_high_s16(p23), h, 3);
    sums.low = vmlal_lane_s16(sums.low, vget_low_s16(p01), l, 0);
    sums.low = vmlal_lane_s16(sums.low, vget_high_s16(p01), l, 1);
    sums.low = vmlal_lane_s16(sums.low, vget_low_s16(p23), l, 2);
    sums.low = vmlal_lane_s16(sums.low, vget_high_s16(p23), l, 3);
  }
  const int32x4_t value = vrshrq_n_s32(total(sums), kResampleBits);
  const int16x4_t words = vqmovn_s32(value);
  const uint8x8_t bytes = vqmovun_s16(vcombine_s16(words, words));
  const std::uint32_t pixel = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
  __builtin_memcpy(out + index * kChannels, &pixel, kChannels);
}

void grey_at(const ResampleAxis* axis, std::int64_t index, const std::uint8_t* in,
             std::uint8_t* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  halves sums = zero_halves();
  for (std::int64_t t = 0; t < axis->count[index]; t += 8) {
    const uint8x8_t bytes = vld1_u8(in + axis->first[index] + t);
    const int16x8_t words = vreinterpretq_s16_u16(vmovl_u8(bytes));
    const int16x8_t h = vld1q_s16(high + t), l = vld1q_s16(low + t);
    sums.high = vmlal_s16(sums.high, vget_low_s16(words), vget_low_s16(h));
    sums.high = vmlal_high_s16(sums.high, words, h);
    sums.low = vmlal_s16(sums.low, vget_low_s16(words), vget_low_s16(l));
    sums.low = vmlal_high_s16(sums.low, words, l);
  }
  out[index] = rounded_byte(vaddvq_s32(total(sums)) + (1 << (kResampleBits - 1)));
}

template <int kChannels>
void row_of(const ResampleAxis* axis, std::int64_t width, const std::uint8_t* in,
            std::uint8_t* out) {
  constexpr int kTaps = kChannels == 1 ? 8 : 4;
  constexpr int kLoad = kChannels == 1 ? 8 : 16;
  const uint8x16_t order[2] = {pixel_order<kChannels>(0), pixel_order<kChannels>(2)};
  for (std::int64_t i = 0; i < axis->size; ++i) {
    const std::int64_t steps = (axis->count[i] + kTaps - 1) / kTaps;
    const std::int64_t last_load = (axis->first[i] + (steps - 1) * kTaps) * kChannels;
    if (last_load + kLoad > width * kChannels) {
      plain_pixel(axis, i, kChannels, in, out);
    } else if constexpr (kChannels == 1) {
      grey_at(axis, i, in, out);
    } else {
      pixel_at<kChannels>(axis, i, order, in, out);
    }
  }
}

void resample_rows(const ResampleAxis* axis, std::int64_t channels, std::int64_t width,
                   std::int64_t rows, const std::uint8_t* const* in, std::uint8_t* const* out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (channels == 1) row_of<1>(axis, width, in[r], out[r]);
    if (channels == 3) row_of<3>(axis, width, in[r], out[r]);
    if (channels == 4) row_of<4>(axis, width, in[r], out[r]);
  }
}

// Four outputs of a tap.
inline void add_tap(halves& sums, int16x4_t words, std::int16_t high, std::int16_t low) {
  sums.high = vmlal_n_s16(sums.high, words, high);
  sums.low = vmlal_n_s16(sums.low, words, low);
}

// 16 bytes of an output row.
void column_16(const std::int16_t* high, const std::int16_t* low, std::int64_t count,
               const std::uint8_t* const* in, std::int64_t at, std::uint8_t* out) {
  halves s0 = zero_halves(), s1 = s0, s2 = s0, s3 = s0;
  for (std::int64_t t = 0; t < count; ++t) {
    const uint8x16_t bytes = vld1q_u8(in[t] + at);
    const int16x8_t below = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
    const int16x8_t above = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
    add_tap(s0, vget_low_s16(below), high[t], low[t]);
    add_tap(s1, vget_high_s16(below), high[t], low[t]);
    add_tap(s2, vget_low_s16(above), high[t], low[t]);
    add_tap(s3, vget_high_s16(above), high[t], low[t]);
  }
  const int16x8_t words01 = vcombine_s16(vqmovn_s32(vrshrq_n_s32(total(s0), kResampleBits)),
                                         vqmovn_s32(vrshrq_n_s32(total(s1), kResampleBits)));
  const int16x8_t words23 = vcombine_s16(vqmovn_s32(vrshrq_n_s32(total(s2), kResampleBits)),
                                         vqmovn_s32(vrshrq_n_s32(total(s3), kResampleBits)));
  vst1q_u8(out + at, vcombine_u8(vqmovun_s16(words01), vqmovun_s16(words23)));
}

void resample_column(const ResampleAxis* axis, std::int64_t index, std::int64_t n,
                     const std::uint8_t* const* in, std::uint8_t* out) {
  if (n < 16) return plain_column(axis, index, 0, n, in, out);
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  const std::int64_t count = axis->count[index];
  for (std::int64_t i = 0; i + 16 <= n; i += 16) column_16(high, low, count, in, i, out);
  if (n % 16 != 0) column_16(high, low, count, in, n - 16, out);  // some bytes a second time
}

}  // namespace

const ImageKernels image_neon = {resample_rows, resample_column};

}  // namespace musespark

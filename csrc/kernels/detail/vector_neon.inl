// The vector vocabulary on AArch64: sixteen float lanes in four registers (lanes 0-3 in a, 4-7 in
// b, 8-11 in c, 12-15 in d). vector_avx512.inl has the comments; the bits are the same.
//
// FMAX and FMIN give a NaN where one operand is one, and +0 for a pair of zeros: the larger and the
// smaller are a comparison and a select, as the vocabulary says.
#include <arm_neon.h>

#include <cstdint>

#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

#define MS_EACH_1(f, x) {f(x.a), f(x.b), f(x.c), f(x.d)}
#define MS_EACH_2(f, x, y) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}

struct vf {
  float32x4_t a, b, c, d;
};
struct vi {
  int32x4_t a, b, c, d;
};
struct vm {  // all ones or all zeros in each lane
  uint32x4_t a, b, c, d;
};

MS_INLINE vf vset(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {v, v, v, v};
}
MS_INLINE vf vload(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
MS_INLINE void vstore(float* p, vf x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
MS_INLINE vi iset(std::int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {v, v, v, v};
}
MS_INLINE vi iload(const std::int32_t* p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
MS_INLINE void istore(void* p, vi x) {
  std::uint8_t* to = static_cast<std::uint8_t*>(p);
  vst1q_u8(to, vreinterpretq_u8_s32(x.a));
  vst1q_u8(to + 16, vreinterpretq_u8_s32(x.b));
  vst1q_u8(to + 32, vreinterpretq_u8_s32(x.c));
  vst1q_u8(to + 48, vreinterpretq_u8_s32(x.d));
}
MS_INLINE vi ilane() {
  static constexpr std::int32_t kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return iload(kLane);
}
// The rest of a row: through memory, for nothing outside it may be read or written.
MS_INLINE vf vload_n(const float* p, std::int64_t n) {
  if (n == 16) return vload(p);
  float lane[16] = {};
  for (std::int64_t i = 0; i < n; ++i) lane[i] = p[i];
  return vload(lane);
}
MS_INLINE void vstore_n(float* p, vf x, std::int64_t n) {
  if (n == 16) {
    vstore(p, x);
  } else {
    float lane[16];
    vstore(lane, x);
    for (std::int64_t i = 0; i < n; ++i) p[i] = lane[i];
  }
}

MS_INLINE vf vadd(vf x, vf y) { return MS_EACH_2(vaddq_f32, x, y); }
MS_INLINE vf vsub(vf x, vf y) { return MS_EACH_2(vsubq_f32, x, y); }
MS_INLINE vf vmul(vf x, vf y) { return MS_EACH_2(vmulq_f32, x, y); }
MS_INLINE vf vdiv(vf x, vf y) { return MS_EACH_2(vdivq_f32, x, y); }
MS_INLINE vf vfma(vf x, vf y, vf z) {
  return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
          vfmaq_f32(z.d, x.d, y.d)};
}
MS_INLINE float32x4_t larger(float32x4_t x, float32x4_t y) {
  return vbslq_f32(vcgtq_f32(x, y), x, y);
}
MS_INLINE float32x4_t smaller(float32x4_t x, float32x4_t y) {
  return vbslq_f32(vcltq_f32(x, y), x, y);
}
MS_INLINE vf vmax(vf x, vf y) { return MS_EACH_2(larger, x, y); }
MS_INLINE vf vmin(vf x, vf y) { return MS_EACH_2(smaller, x, y); }

MS_INLINE vi vbits(vf x) { return MS_EACH_1(vreinterpretq_s32_f32, x); }
MS_INLINE vf vfloat(vi x) { return MS_EACH_1(vreinterpretq_f32_s32, x); }
MS_INLINE vi iadd(vi x, vi y) { return MS_EACH_2(vaddq_s32, x, y); }
MS_INLINE vi iand(vi x, vi y) { return MS_EACH_2(vandq_s32, x, y); }
MS_INLINE vi ior(vi x, vi y) { return MS_EACH_2(vorrq_s32, x, y); }
MS_INLINE vi ixor(vi x, vi y) { return MS_EACH_2(veorq_s32, x, y); }
MS_INLINE vi imax(vi x, vi y) { return MS_EACH_2(vmaxq_s32, x, y); }
MS_INLINE int32x4_t umax(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(x), vreinterpretq_u32_s32(y)));
}
MS_INLINE vi iumax(vi x, vi y) { return MS_EACH_2(umax, x, y); }
template <int kBits>
MS_INLINE vi ishl(vi x) {
  return {vshlq_n_s32(x.a, kBits), vshlq_n_s32(x.b, kBits), vshlq_n_s32(x.c, kBits),
          vshlq_n_s32(x.d, kBits)};
}
template <int kBits>
MS_INLINE vi ishr(vi x) {
  return {vshrq_n_s32(x.a, kBits), vshrq_n_s32(x.b, kBits), vshrq_n_s32(x.c, kBits),
          vshrq_n_s32(x.d, kBits)};
}
MS_INLINE int32x4_t multiply16(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s16(vmulq_s16(vreinterpretq_s16_s32(x), vreinterpretq_s16_s32(y)));
}
MS_INLINE vi imul16(vi x, vi y) { return MS_EACH_2(multiply16, x, y); }
MS_INLINE int32x4_t add8(int32x4_t x, int32x4_t y) {
  return vreinterpretq_s32_s8(vaddq_s8(vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(y)));
}
MS_INLINE vi iadd8(vi x, vi y) { return MS_EACH_2(add8, x, y); }
MS_INLINE vi iblend(vi mask, vi yes, vi no) { return ixor(no, iand(mask, ixor(yes, no))); }
MS_INLINE int32x4_t lookup(uint8x16_t table, int32x4_t index) {
  return vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(index)));
}
MS_INLINE vi ilookup(const std::uint8_t* table, vi index) {
  const uint8x16_t t = vld1q_u8(table);
  return {lookup(t, index.a), lookup(t, index.b), lookup(t, index.c), lookup(t, index.d)};
}
MS_INLINE vi ispread(const std::uint8_t* p) {
  constexpr std::int32_t kFour = 0x01010101;
  static constexpr std::int32_t kSource[16] = {
      0 * kFour, 1 * kFour, 2 * kFour,  3 * kFour,  4 * kFour,  5 * kFour,  6 * kFour,  7 * kFour,
      8 * kFour, 9 * kFour, 10 * kFour, 11 * kFour, 12 * kFour, 13 * kFour, 14 * kFour, 15 * kFour};
  return ilookup(p, iload(kSource));
}
MS_INLINE vi vround(vf x) { return MS_EACH_1(vcvtnq_s32_f32, x); }
MS_INLINE vf vconvert(vi x) { return MS_EACH_1(vcvtq_f32_s32, x); }

MS_INLINE vm vless(vf x, vf y) { return MS_EACH_2(vcltq_f32, x, y); }
MS_INLINE uint32x4_t unordered(float32x4_t x) { return vmvnq_u32(vceqq_f32(x, x)); }
MS_INLINE vm vunordered(vf x) { return MS_EACH_1(unordered, x); }
MS_INLINE std::uint32_t vlane_bits(vm m) {
  static constexpr std::uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128,
                                            1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t low = vcombine_u16(vmovn_u32(m.a), vmovn_u32(m.b));
  const uint16x8_t high = vcombine_u16(vmovn_u32(m.c), vmovn_u32(m.d));
  const uint8x16_t bytes = vcombine_u8(vmovn_u16(low), vmovn_u16(high));
  const uint8x16_t bits = vandq_u8(bytes, vld1q_u8(kBit));
  return vaddv_u8(vget_low_u8(bits)) | static_cast<std::uint32_t>(vaddv_u8(vget_high_u8(bits)))
                                           << 8;
}
MS_INLINE vf vselect(vm m, vf yes, vf no) {
  return {vbslq_f32(m.a, yes.a, no.a), vbslq_f32(m.b, yes.b, no.b), vbslq_f32(m.c, yes.c, no.c),
          vbslq_f32(m.d, yes.d, no.d)};
}
MS_INLINE vi iselect(vm m, vi yes, vi no) { return vbits(vselect(m, vfloat(yes), vfloat(no))); }
MS_INLINE vm igreater(vi x, vi y) { return MS_EACH_2(vcgtq_s32, x, y); }
MS_INLINE vm vrange(std::int64_t first, std::int64_t end) {
  const std::int64_t low = first < 0 ? 0 : first > 16 ? 16 : first;
  const std::int64_t high = end < 0 ? 0 : end > 16 ? 16 : end;
  const vm from = igreater(ilane(), iset(static_cast<std::int32_t>(low) - 1));
  const vm to = igreater(iset(static_cast<std::int32_t>(high)), ilane());
  return MS_EACH_2(vandq_u32, from, to);
}

// Without a scaling instruction: two factors, the first exact.
MS_INLINE float32x4_t power_of_two(int32x4_t e) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
}
MS_INLINE float32x4_t scale2_quarter(float32x4_t p, float32x4_t n) {
  const int32x4_t k = vcvtnq_s32_f32(n);
  const int32x4_t first = vshrq_n_s32(k, 1);
  return vmulq_f32(vmulq_f32(p, power_of_two(first)), power_of_two(vsubq_s32(k, first)));
}
MS_INLINE vf vscale2(vf p, vf n) { return MS_EACH_2(scale2_quarter, p, n); }

MS_INLINE float vtree_sum(vf x) {
  const float32x4_t quarter = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  const float32x2_t pair = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
MS_INLINE float vtree_max(vf x) {
  const float32x4_t quarter = larger(larger(x.d, x.b), larger(x.c, x.a));
  const float32x4_t pair = larger(vextq_f32(quarter, quarter, 2), quarter);
  return vgetq_lane_f32(larger(vrev64q_f32(pair), pair), 0);
}
MS_INLINE std::int32_t itree_max(vi x) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d)));
}
MS_INLINE uint32x4_t umax_four(const std::int32_t* from) {
  uint32x4_t x[4];
  for (int i = 0; i < 4; ++i) {
    const vi row = iload(from + 16 * i);
    x[i] = vreinterpretq_u32_s32(umax(umax(row.a, row.b), umax(row.c, row.d)));
  }
  return vpmaxq_u32(vpmaxq_u32(x[0], x[1]), vpmaxq_u32(x[2], x[3]));
}
MS_INLINE vi iumax_rows(const std::int32_t* from) {
  const int32x4_t low = vreinterpretq_s32_u32(umax_four(from));
  const int32x4_t high = vreinterpretq_s32_u32(umax_four(from + 64));
  return {low, high, low, high};
}

MS_INLINE vf vswap1(vf x) { return MS_EACH_1(vrev64q_f32, x); }
MS_INLINE float32x4_t swap_halves(float32x4_t x) { return vextq_f32(x, x, 2); }
MS_INLINE vf vswap2(vf x) { return MS_EACH_1(swap_halves, x); }
MS_INLINE vf vswap4(vf x) { return {x.b, x.a, x.d, x.c}; }
MS_INLINE vf vswap8(vf x) { return {x.c, x.d, x.a, x.b}; }
MS_INLINE vf vtwice(vf x) {
  return {vzip1q_f32(x.a, x.a), vzip2q_f32(x.a, x.a), vzip1q_f32(x.b, x.b), vzip2q_f32(x.b, x.b)};
}

// FCVTL and FCVTN; FPCR as FloatEnv sets it (IEEE halves, to nearest even, subnormals kept).
MS_INLINE float32x4_t load_f16x4(const std::uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
MS_INLINE void store_f16x4(std::uint8_t* p, float32x4_t x) {
  vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
MS_INLINE vf vload_f16(const std::uint8_t* p) {
  return {load_f16x4(p), load_f16x4(p + 8), load_f16x4(p + 16), load_f16x4(p + 24)};
}
MS_INLINE void vstore_f16(std::uint8_t* p, vf x) {
  store_f16x4(p, x.a);
  store_f16x4(p + 8, x.b);
  store_f16x4(p + 16, x.c);
  store_f16x4(p + 24, x.d);
}

MS_INLINE void vcolumns_f16(const std::uint8_t* const (&row)[8], std::int64_t offset, float* to) {
  for (int i = 0; i < 16; ++i) vstore(to + 16 * i, vset(0.0f));
  for (int p = 0; p < 8; ++p) {
    float x[16];
    vstore(x, vload_f16(row[p] + offset));
    for (int i = 0; i < 16; ++i) to[16 * i + p] = x[i];
  }
}

#undef MS_EACH_1
#undef MS_EACH_2

}  // namespace
}  // namespace musespark

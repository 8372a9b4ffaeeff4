// Codes of every quantized format to int16 weights w8, 256-bit: one half (8 rows) of a 64-byte code
// vector.
//
// A dword lane is a row; the w8 of its columns k%4 = 0, 2 come out as int16 words "even", those of
// 1, 3 as "odd", so that vpmaddwd with the same pair of activations sums two columns exactly.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"

namespace musespark {
namespace {

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Sub-scales of 8 rows, -128 taken as -127, sign-extended, in both words of each row's lane.
inline __m256i sub_words(const std::int8_t* sub) {
  const __m128i bytes =
      _mm_max_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sub)), _mm_set1_epi8(-127));
  const __m256i s = _mm256_cvtepi8_epi32(bytes);
  return _mm256_blend_epi16(s, _mm256_slli_epi32(s, 16), 0xaa);
}

// The levels of a 4-bit format in each 128-bit lane, for vpshufb.
inline __m256i level_bytes(WeightFormat format) {
  return _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(levels_of(format))));
}

struct Bytes {  // quad v (low) and quad v + 8 (high) of 64 columns
  __m256i low, high;
};

inline Bytes nibble_levels(__m256i code, __m256i levels) {
  const __m256i nibble = _mm256_set1_epi8(15);
  return {_mm256_shuffle_epi8(levels, _mm256_and_si256(code, nibble)),
          _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(code, 4), nibble))};
}

struct Words {  // quad v (low) and quad v + 8 (high) of one code vector, as int16
  __m256i low_even, low_odd, high_even, high_odd;
};

// mulhrs(level << 8, sub) = (level * sub + 64) >> 7
inline Words q4_words(__m256i code, __m256i levels, __m256i sub_low, __m256i sub_high) {
  const __m256i upper = _mm256_set1_epi16(static_cast<short>(0xff00));
  const auto [low, high] = nibble_levels(code, levels);
  Words w;
  w.low_even = _mm256_mulhrs_epi16(_mm256_slli_epi16(low, 8), sub_low);
  w.low_odd = _mm256_mulhrs_epi16(_mm256_and_si256(low, upper), sub_low);
  w.high_even = _mm256_mulhrs_epi16(_mm256_slli_epi16(high, 8), sub_high);
  w.high_odd = _mm256_mulhrs_epi16(_mm256_and_si256(high, upper), sub_high);
  return w;
}

// One q6 position: `low` has the nibble at bits 10..13, `high` the two high bits at 14..15. The
// word they make is code << 10 = level << 8.
inline __m256i q6_position(__m256i low, __m256i high, __m256i sub) {
  const __m256i word =
      _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(0x3c00)),
                      _mm256_and_si256(high, _mm256_set1_epi16(static_cast<short>(0xc000))));
  return _mm256_mulhrs_epi16(word, sub);
}

// Code vector v (0..7) and its high-bit vector u = v % 4: quad v has the bits at 2 * (v / 4), quad
// v + 8 those at 2 * (v / 4) + 4.
template <int kHalf>  // v / 4
inline Words q6_words(__m256i code, __m256i high, __m256i sub_low, __m256i sub_high) {
  Words w;
  w.low_even =
      q6_position(_mm256_slli_epi16(code, 10), _mm256_slli_epi16(high, 14 - 2 * kHalf), sub_low);
  w.high_even =
      q6_position(_mm256_slli_epi16(code, 6), _mm256_slli_epi16(high, 10 - 2 * kHalf), sub_high);
  w.low_odd =
      q6_position(_mm256_slli_epi16(code, 2), _mm256_slli_epi16(high, 6 - 2 * kHalf), sub_low);
  w.high_odd = q6_position(_mm256_srli_epi16(code, 2),
                           kHalf == 0 ? _mm256_slli_epi16(high, 2) : high, sub_high);
  return w;
}

inline __m256i even_words(__m256i bytes) {
  return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}
inline __m256i odd_words(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

// Calls use(v, words) for the eight code vectors of 64 columns, rows 8 * half .. 8 * half + 7.
// `levels` are those of a format without sub-scales.
template <WeightFormat kFormat, class Use>
[[gnu::always_inline]] inline void each_words(const std::uint8_t* codes, const std::int8_t* sub,
                                              __m256i levels, int half, Use use) {
  codes += 32 * half;
  if constexpr (!has_sub(kFormat)) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      __m256i low, high;
      if constexpr (is_byte(kFormat)) {
        low = load256(codes + 64 * v);
        high = load256(codes + 64 * (v + 8));
      } else {
        const Bytes w = nibble_levels(load256(codes + 64 * v), levels);
        low = w.low;
        high = w.high;
      }
      use(v, Words{even_words(low), odd_words(low), even_words(high), odd_words(high)});
    }
  } else {
    const __m256i sub_low = sub_words(sub + 8 * half);
    const __m256i sub_high = sub_words(sub + kRowBlock + 8 * half);
    const __m256i q4_levels = level_bytes(WeightFormat::q4);
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      const __m256i code = load256(codes + 64 * v);
      if constexpr (kFormat == WeightFormat::q4) {
        use(v, q4_words(code, q4_levels, sub_low, sub_high));
      } else {
        const __m256i high = load256(codes + 512 + 64 * (v % 4));
        use(v, v < 4 ? q6_words<0>(code, high, sub_low, sub_high)
                     : q6_words<1>(code, high, sub_low, sub_high));
      }
    }
  }
}

}  // namespace
}  // namespace musespark

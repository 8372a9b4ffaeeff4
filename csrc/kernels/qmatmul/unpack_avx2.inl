// Codes of every quantized format to int16 weights w8, 256-bit: 8 of the 16 rows of a 64-byte code
// vector, and one of its quads.
//
// A dword lane is a row; the w8 of its columns k%4 = 0, 2 come out as int16 words "even", those of
// 1, 3 as "odd", so that vpmaddwd with the same pair of activations sums two columns exactly.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/stream.inl"

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

// Quad v (kSecond = 0) or v + 8 (1) of a vector of 4-bit codes.
template <int kSecond>
inline __m256i nibble_levels(__m256i code, __m256i levels) {
  const __m256i nibbles = kSecond == 0 ? code : _mm256_srli_epi16(code, 4);
  return _mm256_shuffle_epi8(levels, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}

struct Pair {  // one quad as int16
  __m256i even, odd;
};

// Levels, bytes of one quad, to weights: mulhrs(level << 8, sub) = (level * sub + 64) >> 7.
inline Pair scaled_pair(__m256i levels, __m256i sub) {
  const __m256i upper = _mm256_set1_epi16(static_cast<short>(0xff00));
  return {_mm256_mulhrs_epi16(_mm256_slli_epi16(levels, 8), sub),
          _mm256_mulhrs_epi16(_mm256_and_si256(levels, upper), sub)};
}

// Levels of q6, code << 2, of quad v (kSecond = 0) or v + 8 (1); `high` is the vector of high bits
// u = v % 4. Quad v has its bits at 2 * (v / 4), quad v + 8 at 2 * (v / 4) + 4.
template <int kSecond>
inline __m256i q6_levels(__m256i code, __m256i high, int v) {
  const __m256i low = kSecond == 0 ? _mm256_slli_epi16(code, 2) : _mm256_srli_epi16(code, 2);
  const __m256i top = _mm256_slli_epi16(high, 6 - 4 * kSecond - 2 * (v / 4));
  return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(0x3c)),
                         _mm256_and_si256(top, _mm256_set1_epi8(static_cast<char>(0xc0))));
}

inline __m256i even_words(__m256i bytes) {
  return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}
inline __m256i odd_words(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

// Quad v + 8 * kSecond of 64 columns; `codes` from the first of the 8 rows on.
template <WeightFormat kFormat, int kSecond>
inline Pair code_pair(const std::uint8_t* codes, int v, __m256i levels, __m256i sub) {
  if constexpr (kFormat == WeightFormat::q4) {
    return scaled_pair(nibble_levels<kSecond>(load256(codes + 64 * v), levels), sub);
  } else if constexpr (kFormat == WeightFormat::q6) {
    const __m256i code = load256(codes + 64 * v), high = load256(codes + 512 + 64 * (v % 4));
    return scaled_pair(q6_levels<kSecond>(code, high, v), sub);
  } else if constexpr (is_byte(kFormat)) {
    const __m256i bytes = load256(codes + 64 * (v + 8 * kSecond));
    return {even_words(bytes), odd_words(bytes)};
  } else {
    const __m256i bytes = nibble_levels<kSecond>(load256(codes + 64 * v), levels);
    return {even_words(bytes), odd_words(bytes)};
  }
}

// The table that code_pair looks levels up in.
template <WeightFormat kFormat>
inline __m256i code_levels(WeightFormat format) {
  return level_bytes(has_sub(kFormat) ? WeightFormat::q4 : format);
}

// Sub-scales of 8 rows of a group of 32 columns, where the format has them.
template <WeightFormat kFormat>
inline __m256i sub_scales(const std::int8_t* sub) {
  if constexpr (has_sub(kFormat)) return sub_words(sub);
  return _mm256_setzero_si256();
}

// 64 columns are unpacked in four quarters of eight vectors: 8 rows x 32 columns each. Fetches the
// share of quarter q's vector v in the lines of codes `ahead`, one line at a time.
template <WeightFormat kFormat>
[[gnu::always_inline]] inline void prefetch_quarter(const std::uint8_t* codes, std::int64_t ahead,
                                                    int q, int v) {
  constexpr int kLines = code_stride(kFormat) / 64 / 4;
  if (v * kLines % 8 < kLines) prefetch(codes + ahead + 64 * (q * kLines + v * kLines / 8));
}

}  // namespace
}  // namespace musespark

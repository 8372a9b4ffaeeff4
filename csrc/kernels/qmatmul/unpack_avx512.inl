// Codes of every quantized format to int8 or int16 weights w8, 64 columns x 16 rows at a time,
// 512-bit.
//
// A dword lane is a row; the w8 of its columns k%4 = 0, 2 come out as int16 words "even", those of
// 1, 3 as "odd". (A table of words in vpermw would save two operations a vector, but loads port 5
// so that it measures 6% slower on Sapphire Rapids than vpshufb.)
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/shared_avx512.inl"

namespace musespark {
namespace {

// Sub-scales of one 32-column group, -128 taken as -127, sign-extended, in both words of each row's
// lane.
inline __m512i sub_words(const std::int8_t* sub) {
  const __m128i bytes =
      _mm_max_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sub)), _mm_set1_epi8(-127));
  const __m512i rows = _mm512_broadcast_i32x4(bytes);
  // 128-bit lane i holds rows 4i .. 4i+3: the words (sub << 8, sub << 8) of each.
  const __m512i pick =
      _mm512_set_epi32(0x0f800f80, 0x0e800e80, 0x0d800d80, 0x0c800c80, 0x0b800b80, 0x0a800a80,
                       0x09800980, 0x08800880, 0x07800780, 0x06800680, 0x05800580, 0x04800480,
                       0x03800380, 0x02800280, 0x01800180, 0x00800080);
  return _mm512_srai_epi16(_mm512_shuffle_epi8(rows, pick), 8);
}

// Low four bits of a q6 code to their share of its level.
constexpr std::int8_t kQ6Low[16] = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60};

inline __m512i table_bytes(const std::int8_t (&table)[16]) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// The levels of a 4-bit format in each 128-bit lane; plus 128 if kBias.
template <bool kBias = false>
inline __m512i level_bytes(WeightFormat format) {
  const __m512i levels = table_bytes(levels_of(format));
  return kBias ? _mm512_xor_si512(levels, _mm512_set1_epi8(-128)) : levels;
}

struct Bytes {  // quad v (low) and quad v + 8 (high) of 64 columns
  __m512i low, high;
};

inline Bytes nibble_levels(__m512i code, __m512i levels) {
#ifdef __AVX512VBMI__  // vpermb looks at six bits: with four copies of the table none need be
                       // masked
  return {_mm512_permutexvar_epi8(code, levels),
          _mm512_permutexvar_epi8(_mm512_srli_epi16(code, 4), levels)};
#else
  const __m512i nibble = _mm512_set1_epi8(15);
  return {_mm512_shuffle_epi8(levels, _mm512_and_si512(code, nibble)),
          _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(code, 4), nibble))};
#endif
}

struct Words {  // quad v (low) and quad v + 8 (high) of one code vector, as int16
  __m512i low_even, low_odd, high_even, high_odd;
};

// mulhrs(level << 8, sub) = (level * sub + 64) >> 7
inline Words scaled_words(Bytes levels, __m512i sub_low, __m512i sub_high) {
  const __m512i upper = _mm512_set1_epi16(static_cast<short>(0xff00));
  Words w;
  w.low_even = _mm512_mulhrs_epi16(_mm512_slli_epi16(levels.low, 8), sub_low);
  w.low_odd = _mm512_mulhrs_epi16(_mm512_and_si512(levels.low, upper), sub_low);
  w.high_even = _mm512_mulhrs_epi16(_mm512_slli_epi16(levels.high, 8), sub_high);
  w.high_odd = _mm512_mulhrs_epi16(_mm512_and_si512(levels.high, upper), sub_high);
  return w;
}

// Levels of q6, code << 2: `low_bits` are nibble_levels of kQ6Low, `high` the vector of high bits
// u = v % 4. Quad v has its bits at 2 * (v / 4), quad v + 8 at 2 * (v / 4) + 4.
inline Bytes q6_levels(Bytes low_bits, __m512i high, int v) {
  const __m512i top = _mm512_set1_epi8(static_cast<char>(0xc0));
  const __m512i low = v < 4 ? _mm512_slli_epi16(high, 6) : _mm512_slli_epi16(high, 4);
  const __m512i up = v < 4 ? _mm512_slli_epi16(high, 2) : high;
  return {_mm512_ternarylogic_epi32(low_bits.low, low, top, 0xf8),  // a | (b & c)
          _mm512_ternarylogic_epi32(low_bits.high, up, top, 0xf8)};
}

// (even & 0xff) | odd << 8, plus 128 in every byte if kBias.
template <bool kBias>
inline __m512i pack_words(__m512i even, __m512i odd) {
  const __m512i low_bytes =
      _mm512_broadcast_i32x4(_mm_set_epi32(0x0e0e0c0c, 0x0a0a0808, 0x06060404, 0x02020000));
  const __m512i bytes = _mm512_mask_shuffle_epi8(even, 0xaaaaaaaaaaaaaaaa, odd, low_bytes);
  return kBias ? _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) : bytes;
}

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

// Code vector v (0..7) of 64 columns as int16 weights.
template <WeightFormat kFormat>
inline Words code_words(const std::uint8_t* codes, int v, __m512i levels, __m512i sub_low,
                        __m512i sub_high) {
  static_assert(has_sub(kFormat));
  Bytes w = nibble_levels(load512(codes + 64 * v), levels);
  if constexpr (kFormat == WeightFormat::q6) {
    w = q6_levels(w, load512(codes + 512 + 64 * (v % 4)), v);
  }
  return scaled_words(w, sub_low, sub_high);
}

// The table that code_words and code_bytes<kBias> look levels up in.
template <WeightFormat kFormat, bool kBias>
inline __m512i code_levels(WeightFormat format) {
  if constexpr (kFormat == WeightFormat::q6) return table_bytes(kQ6Low);
  return has_sub(kFormat) ? level_bytes(WeightFormat::q4) : level_bytes<kBias>(format);
}

// Code vector v (0..7) of 64 columns as int8 weights; plus 128 if kBias.
template <WeightFormat kFormat, bool kBias>
inline Bytes code_bytes(const std::uint8_t* codes, int v, __m512i levels, __m512i sub_low,
                        __m512i sub_high) {
  if constexpr (is_byte(kFormat)) {
    const __m512i flip = _mm512_set1_epi8(kBias ? -128 : 0);
    return {_mm512_xor_si512(load512(codes + 64 * v), flip),
            _mm512_xor_si512(load512(codes + 64 * (v + 8)), flip)};
  } else if constexpr (has_sub(kFormat)) {
    const Words w = code_words<kFormat>(codes, v, levels, sub_low, sub_high);
    return {pack_words<kBias>(w.low_even, w.low_odd), pack_words<kBias>(w.high_even, w.high_odd)};
  } else {
    return nibble_levels(load512(codes + 64 * v), levels);
  }
}

// Sub-scales of both halves of 64 columns, where the format has them.
struct SubWords {
  __m512i low = {}, high = {};
};
template <WeightFormat kFormat>
inline SubWords sub_scales(const std::int8_t* sub) {
  if constexpr (!has_sub(kFormat)) return {};
  return {sub_words(sub), sub_words(sub + kRowBlock)};
}

// Fetches the lines `ahead` of those that code vector v reads.
template <WeightFormat kFormat>
inline void prefetch_codes(const std::uint8_t* codes, std::int64_t ahead, int v) {
  prefetch(codes + ahead + 64 * v);
  if (is_byte(kFormat)) prefetch(codes + ahead + 64 * (v + 8));
  if (kFormat == WeightFormat::q6 && v < 4) prefetch(codes + ahead + 64 * (v + 8));
}

// 64 columns of one row block to [16 quads][16 rows][4 k]: w8 (kBias: w8 + 128, unsigned); fetches
// the codes `ahead`. `levels` are code_levels<kFormat, kBias>.
template <WeightFormat kFormat, bool kBias>
inline void unpack64(const std::uint8_t* codes, std::int64_t ahead, const std::int8_t* sub,
                     __m512i levels, std::uint8_t* to) {
  const SubWords scales = sub_scales<kFormat>(sub);
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    prefetch_codes<kFormat>(codes, ahead, v);
    const Bytes w = code_bytes<kFormat, kBias>(codes, v, levels, scales.low, scales.high);
    _mm512_store_si512(to + 64 * v, w.low);
    _mm512_store_si512(to + 64 * (v + 8), w.high);
  }
}

}  // namespace
}  // namespace musespark

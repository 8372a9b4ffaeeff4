// Weights as biased bytes for vpdpbusd with 256-bit vectors, and the rows of activations that meet
// them there.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/few_avx2.inl"
#include "kernels/qmatmul/gathered.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

// The table that code_bytes looks levels up in.
template <WeightFormat kFormat>
inline __m256i byte_levels(WeightFormat format) {
  const __m256i levels = code_levels<kFormat>(format);
  return has_sub(kFormat) ? levels : _mm256_xor_si256(levels, _mm256_set1_epi8(-128));
}

// Quad v + 8 * kSecond of 64 columns as w8 + 128; `codes` from the first of the 8 rows on.
template <WeightFormat kFormat, int kSecond>
inline __m256i code_bytes(const std::uint8_t* codes, int v, __m256i levels, __m256i sub) {
  if constexpr (is_byte(kFormat)) {
    return _mm256_xor_si256(load256(codes + 64 * (v + 8 * kSecond)), _mm256_set1_epi8(-128));
  } else if constexpr (has_sub(kFormat)) {
    const Pair w = code_pair<kFormat, kSecond>(codes, v, levels, sub);
    // even + 128 is a byte: nothing is carried into the upper one.
    const __m256i bias = _mm256_set1_epi16(static_cast<short>(0x8080));
    return _mm256_add_epi16(_mm256_slli_epi16(w.odd, 8), _mm256_add_epi16(w.even, bias));
  } else {
    return nibble_levels<kSecond>(load256(codes + 64 * v), levels);
  }
}

// As WordRows, with bytes.
template <WeightFormat kForm, int kRows>
struct ByteRows : Gathered<kRows> {
  static constexpr WeightFormat kFormat = kForm;
  static constexpr int kCount = kRows;
  static constexpr int kChains = kRows <= 2 ? 4 : kRows <= 4 ? 2 : 1;
  using Chains = __m256i[kRows][kChains];
  using Gathered<kRows>::Gathered;

  static __m256i levels(WeightFormat format) { return byte_levels<kFormat>(format); }

  template <int kFirst, int kLast>
  [[gnu::always_inline]] void start(std::int64_t g, Chains& acc) const {
    const std::int32_t* bias = this->half_bias + g * kRows * 2;
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      acc[m][0] =
          _mm256_set1_epi32(kFirst == kLast ? bias[2 * m + kFirst] : bias[2 * m] + bias[2 * m + 1]);
#pragma GCC unroll 4
      for (int i = 1; i < kChains; ++i) acc[m][i] = _mm256_setzero_si256();
    }
  }

  template <int kSecond>
  [[gnu::always_inline]] void dot(const std::uint8_t* codes, std::int64_t ahead, int half,
                                  __m256i levels, __m256i sub, std::int64_t g, Chains& acc) const {
    const std::int8_t* x = this->q + g * kRows * kActGroup + 32 * kSecond;
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      prefetch_quarter<kFormat>(codes, ahead, 2 * half + kSecond, v);
      const __m256i w = code_bytes<kFormat, kSecond>(codes + 32 * half, v, levels, sub);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const __m256i quad = _mm256_set1_epi32(load_i32(x + m * kActGroup + 4 * v));
        acc[m][v % kChains] = _mm256_dpbusd_avx_epi32(acc[m][v % kChains], w, quad);
      }
    }
  }
};

}  // namespace
}  // namespace musespark

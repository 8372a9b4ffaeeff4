// The resampler on 256-bit vectors. The level's file defines dot_add before:
// acc[i] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1] over int16, modulo 2^32.
//
// A weight's halves are multiplied apart, two taps to an instruction, and put together at the end:
// sum = (sum of high * byte) * 65536 + (sum of low * byte), exact modulo 2^32 whatever the parts
// overflow to, and the whole sum fits.
#include <immintrin.h>

#include <cstdint>

#include "kernels/detail/unroll.inl"
#include "kernels/image/plain.inl"

namespace musespark {
namespace {

// The two sums of eight outputs.
struct halves {
  __m256i high, low;
};

MS_INLINE __m256i load32(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

MS_INLINE __m256i total(halves sums) {
  return _mm256_add_epi32(_mm256_slli_epi32(sums.high, 16), sums.low);
}

// --- Along rows ---------------------------------------------------------------------------------

// Four taps a step. Bytes of four pixels (of five, the last unused, for three channels) to words:
// tap 0 and 1 of each channel side by side in the lower half, tap 2 and 3 in the upper.
MS_INLINE __m256i pair_order(std::int64_t channels) {
  constexpr char z = -128;  // gives a zero byte
  if (channels == 3) {
    return _mm256_setr_epi8(0, z, 3, z, 1, z, 4, z, 2, z, 5, z, z, z, z, z,  //
                            6, z, 9, z, 7, z, 10, z, 8, z, 11, z, z, z, z, z);
  }
  return _mm256_setr_epi8(0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z,  //
                          8, z, 12, z, 9, z, 13, z, 10, z, 14, z, 11, z, 15, z);
}

// Weights 0 and 1 in each dword of the lower half, 2 and 3 in the upper.
MS_INLINE __m256i four_weights(const std::int16_t* w) {
  const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w));
  return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(four),
                                     _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

// The bytes of a pixel in the lowest 32 bits.
MS_INLINE std::uint32_t finished_pixel(halves sums) {
  const __m256i both = total(sums);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  sum = _mm_add_epi32(sum, _mm_set1_epi32(1 << (kResampleBits - 1)));
  sum = _mm_srai_epi32(sum, kResampleBits);
  sum = _mm_packs_epi32(sum, sum);
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_packus_epi16(sum, sum)));
}

template <int kChannels, int kRows>
MS_INLINE void pixels_at(const ResampleAxis* axis, std::int64_t index, __m256i order,
                         const std::uint8_t* const* in, std::uint8_t* const* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  const std::int64_t from = axis->first[index] * kChannels;
  halves sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (std::int64_t t = 0; t < axis->count[index]; t += 4) {
    const __m256i h = four_weights(high + t), l = four_weights(low + t);
    for (int r = 0; r < kRows; ++r) {
      const auto* at = reinterpret_cast<const __m128i*>(in[r] + from + t * kChannels);
      const __m256i pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128(at));
      const __m256i words = _mm256_shuffle_epi8(pixels, order);
      sums[r].high = dot_add(sums[r].high, words, h);
      sums[r].low = dot_add(sums[r].low, words, l);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const std::uint32_t pixel = finished_pixel(sums[r]);
    std::uint8_t* to = out[r] + index * kChannels;
    // With three channels the fourth byte is the next pixel's first, written after this one.
    if (kChannels == 4 || index + 1 < axis->size) {
      __builtin_memcpy(to, &pixel, 4);
    } else {
      __builtin_memcpy(to, &pixel, 3);
    }
  }
}

// Sixteen taps a step.
template <int kRows>
MS_INLINE void greys_at(const ResampleAxis* axis, std::int64_t index, const std::uint8_t* const* in,
                        std::uint8_t* const* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  for (int r = 0; r < kRows; ++r) {
    halves sums = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (std::int64_t t = 0; t < axis->count[index]; t += 16) {
      const auto* at = reinterpret_cast<const __m128i*>(in[r] + axis->first[index] + t);
      const __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128(at));
      sums.high = dot_add(sums.high, words, load32(high + t));
      sums.low = dot_add(sums.low, words, load32(low + t));
    }
    const __m256i both = total(sums);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    out[r][index] = rounded_byte(_mm_cvtsi128_si32(sum) + (1 << (kResampleBits - 1)));
  }
}

template <int kChannels, int kRows>
MS_INLINE void some_rows(const ResampleAxis* axis, std::int64_t width,
                         const std::uint8_t* const* in, std::uint8_t* const* out) {
  constexpr int kTaps = kChannels == 1 ? 16 : 4;
  const __m256i order = pair_order(kChannels);
  for (std::int64_t i = 0; i < axis->size; ++i) {
    const std::int64_t steps = (axis->count[i] + kTaps - 1) / kTaps;
    const std::int64_t last_load = (axis->first[i] + (steps - 1) * kTaps) * kChannels;
    if (last_load + 16 > width * kChannels) {
      for (int r = 0; r < kRows; ++r) plain_pixel(axis, i, kChannels, in[r], out[r]);
    } else if constexpr (kChannels == 1) {
      greys_at<kRows>(axis, i, in, out);
    } else {
      pixels_at<kChannels, kRows>(axis, i, order, in, out);
    }
  }
}

template <int kChannels>
void rows_of(const ResampleAxis* axis, std::int64_t width, std::int64_t rows,
             const std::uint8_t* const* in, std::uint8_t* const* out) {
  if (rows == kResampleRows) {
    some_rows<kChannels, kResampleRows>(axis, width, in, out);
  } else {
    for (std::int64_t r = 0; r < rows; ++r) {
      some_rows<kChannels, 1>(axis, width, in + r, out + r);
    }
  }
}

void resample_rows(const ResampleAxis* axis, std::int64_t channels, std::int64_t width,
                   std::int64_t rows, const std::uint8_t* const* in, std::uint8_t* const* out) {
  if (channels == 1) rows_of<1>(axis, width, rows, in, out);
  if (channels == 3) rows_of<3>(axis, width, rows, in, out);
  if (channels == 4) rows_of<4>(axis, width, rows, in, out);
}

// --- Across rows --------------------------------------------------------------------------------

MS_INLINE __m256i weight_pair(const std::int16_t* w) {
  std::int32_t pair;
  __builtin_memcpy(&pair, w, 4);
  return _mm256_set1_epi32(pair);
}

MS_INLINE void add_pair(halves& sums, __m256i words, __m256i high, __m256i low) {
  sums.high = dot_add(sums.high, words, high);
  sums.low = dot_add(sums.low, words, low);
}

MS_INLINE __m256i finished_sums(halves sums) {
  const __m256i round = _mm256_set1_epi32(1 << (kResampleBits - 1));
  return _mm256_srai_epi32(_mm256_add_epi32(total(sums), round), kResampleBits);
}

// 32 bytes of an output row. Bytes of two rows are interleaved and widened; packing undoes it.
MS_INLINE void column_32(const std::int16_t* high, const std::int16_t* low, std::int64_t count,
                         const std::uint8_t* const* in, std::int64_t at, std::uint8_t* out) {
  const __m256i zero = _mm256_setzero_si256();
  halves s0 = {zero, zero}, s1 = s0, s2 = s0, s3 = s0;
  for (std::int64_t t = 0; t < count; t += 2) {
    const __m256i a = load32(in[t] + at);
    const __m256i b = t + 1 < count ? load32(in[t + 1] + at) : zero;
    const __m256i h = weight_pair(high + t), l = weight_pair(low + t);
    const __m256i below = _mm256_unpacklo_epi8(a, b), above = _mm256_unpackhi_epi8(a, b);
    add_pair(s0, _mm256_unpacklo_epi8(below, zero), h, l);
    add_pair(s1, _mm256_unpackhi_epi8(below, zero), h, l);
    add_pair(s2, _mm256_unpacklo_epi8(above, zero), h, l);
    add_pair(s3, _mm256_unpackhi_epi8(above, zero), h, l);
  }
  const __m256i words01 = _mm256_packs_epi32(finished_sums(s0), finished_sums(s1));
  const __m256i words23 = _mm256_packs_epi32(finished_sums(s2), finished_sums(s3));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), _mm256_packus_epi16(words01, words23));
}

void resample_column(const ResampleAxis* axis, std::int64_t index, std::int64_t n,
                     const std::uint8_t* const* in, std::uint8_t* out) {
  if (n < 32) return plain_column(axis, index, 0, n, in, out);
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  const std::int64_t count = axis->count[index];
  for (std::int64_t i = 0; i + 32 <= n; i += 32) column_32(high, low, count, in, i, out);
  if (n % 32 != 0) column_32(high, low, count, in, n - 32, out);  // some bytes a second time
}

constexpr ImageKernels kImage = {resample_rows, resample_column};

}  // namespace
}  // namespace musespark

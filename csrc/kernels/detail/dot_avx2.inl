// Integer dot products on AVX2, after vector_avx2.inl. VPMADDUBSW would saturate (255 * 127 twice), so
// codes are widened to pairs of int16 and VPMADDWD is exact. dot_avx512vnni.inl has the comments.
#include <cstdint>

namespace musespark {
namespace {

using dot_weight = std::int16_t;
constexpr std::int32_t kDotBias = 0;
constexpr int kTileRows = 4;
constexpr int kTileBlocks = 1;
constexpr int kMeanPages = 4;

// Codes 0, 1 and codes 2, 3 of each lane as int16 pairs; lanes 0-7 and 8-15.
struct vcodes {
  __m256i a01, a23, b01, b23;
};

MS_INLINE __m256i widen_pair(__m256i codes, int second) {
  const __m256i spread =
      second ? _mm256_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15, 2, 2, 3, 3,
                                6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15)
             : _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 0, 0, 1, 1, 4,
                                4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13);
  return _mm256_srai_epi16(_mm256_shuffle_epi8(codes, spread), 8);
}

template <bool kUnsignedWeights>
MS_INLINE vcodes load_codes(const std::uint8_t* p) {
  const __m256i a = load256(p);
  const __m256i b = load256(p + 32);
  return {widen_pair(a, 0), widen_pair(a, 1), widen_pair(b, 0), widen_pair(b, 1)};
}

template <bool kUnsignedWeights>
MS_INLINE vi vdot(vi acc, vcodes codes, const dot_weight* w) {
  std::int32_t pair[2];
  __builtin_memcpy(pair, w, 8);
  const __m256i w01 = _mm256_set1_epi32(pair[0]);
  const __m256i w23 = _mm256_set1_epi32(pair[1]);
  acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(codes.a01, w01));
  acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(codes.b01, w01));
  acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(codes.a23, w23));
  acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(codes.b23, w23));
  return acc;
}

MS_INLINE void store_weights(dot_weight* to, vi x) {
  const __m256i packed = _mm256_packs_epi32(x.a, x.b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
}

}  // namespace
}  // namespace musespark

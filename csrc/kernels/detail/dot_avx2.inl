// Integer dot products on AVX2, after vector_avx2.inl. VPMADDUBSW would saturate (255 * 127 twice),
// so codes are widened to pairs of int16 and VPMADDWD is exact. dot_avx512vnni.inl has the
// comments.
#include <cstdint>

namespace musespark {
namespace {

using dot_weight = std::int16_t;
constexpr int kTileRows = 4;
constexpr int kTileBlocks = 1;
constexpr int kDotSteps = 1;
constexpr int kKeyBias = -128;
constexpr int kValueBias = 0;

// Codes 0, 1 and codes 2, 3 of each lane as int16 pairs; lanes 0-7 and 8-15.
struct vcodes {
  __m256i a01, a23, b01, b23;
};

// Bytes kFirst and kFirst + 1 of each dword as int16.
template <bool kSigned, int kFirst>
MS_INLINE __m256i widen_pair(__m256i codes) {
  constexpr int kHole = 0x80 - 0x100;  // gives a zero byte
  const auto spread = [](auto byte) {
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(
        byte(0), byte(1), byte(2), byte(3), byte(4), byte(5), byte(6), byte(7), byte(8), byte(9),
        byte(10), byte(11), byte(12), byte(13), byte(14), byte(15)));
  };
  // Output byte i comes from dword i / 4: its low half from the first code, its high half from the
  // next.
  const auto source = [](int i) { return i / 4 * 4 + kFirst + i % 4 / 2; };
  if constexpr (kSigned) {
    const __m256i high =
        spread([&](int i) { return static_cast<char>(i % 2 == 0 ? kHole : source(i)); });
    return _mm256_srai_epi16(_mm256_shuffle_epi8(codes, high), 8);
  } else {
    const __m256i low =
        spread([&](int i) { return static_cast<char>(i % 2 == 0 ? source(i) : kHole); });
    return _mm256_shuffle_epi8(codes, low);
  }
}

template <bool kUnsignedWeights>
MS_INLINE vcodes load_codes(const std::uint8_t* p) {
  const __m256i a = load256(p);
  const __m256i b = load256(p + 32);
  return {widen_pair<kUnsignedWeights, 0>(a), widen_pair<kUnsignedWeights, 2>(a),
          widen_pair<kUnsignedWeights, 0>(b), widen_pair<kUnsignedWeights, 2>(b)};
}

template <bool kUnsignedWeights, int kStep>
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

MS_INLINE void store_page_weights(dot_weight* to, const vi (&x)[4]) {
  for (int b = 0; b < 4; ++b) store_weights(to + 16 * b, x[b]);
}

MS_INLINE void store_planes(dot_weight* low, dot_weight* high, const vi (&x)[4]) {
  for (int b = 0; b < 4; ++b) {
    store_weights(low + 16 * b, iand(x[b], iset(255)));
    store_weights(high + 16 * b, ishr<8>(x[b]));
  }
}

}  // namespace
}  // namespace musespark

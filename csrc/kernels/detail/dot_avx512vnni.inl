// Integer dot products on AVX512-VNNI, after vector_avx512.inl: sixteen lanes, four codes deep.
// dot_avx2.inl defines the same names.
#include <cstdint>

namespace musespark {
namespace {

// What a weight (a query or a probability step) is kept as, four to a 32-bit broadcast.
using dot_weight = std::int8_t;
// Accumulators of one register tile: rows x blocks of 16 lanes, with the operands in 32 registers.
constexpr int kTileRows = 6;
constexpr int kTileBlocks = 4;
constexpr int kDotSteps = 1;  // steps whose weights are loaded at once
// A sum starts at these times the sum of its weights. VPDPBUSD wants one unsigned operand: codes of
// keys are unsigned (+128, which the bias undoes) and meet signed weights; codes of values are
// signed and meet unsigned weights (0..255).
constexpr int kKeyBias = -128;
constexpr int kValueBias = 0;

struct vcodes {
  __m512i v;
};

template <bool kUnsignedWeights>
MS_INLINE vcodes load_codes(const std::uint8_t* p) {
  return {_mm512_loadu_si512(p)};
}

// acc + sum of four codes * weights in each lane. w: the weights of kDotSteps steps; kStep: which.
template <bool kUnsignedWeights, int kStep>
MS_INLINE vi vdot(vi acc, vcodes codes, const dot_weight* w) {
  std::int32_t four;
  __builtin_memcpy(&four, w, 4);
  const __m512i weights = _mm512_set1_epi32(four);
  // As assembly: GCC 12 copies and spills the accumulators around the intrinsic.
  const __m512i u = kUnsignedWeights ? weights : codes.v;
  const __m512i s = kUnsignedWeights ? codes.v : weights;
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
  return acc;
}

MS_INLINE void store_weights(dot_weight* to, vi x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}

// 64 weights of 0..255.
MS_INLINE void store_page_weights(dot_weight* to, const vi (&x)[4]) {
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(x[0], x[1]),
                                            _mm512_packus_epi32(x[2], x[3]));  // by 128-bit lane
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, bytes));
}

// The low and the high bytes of 64 weights of 0..32767.
MS_INLINE void store_planes(dot_weight* low, dot_weight* high, const vi (&x)[4]) {
  const __m512i a = _mm512_packus_epi32(x[0], x[1]), b = _mm512_packus_epi32(x[2], x[3]);
  const __m512i byte = _mm512_set1_epi16(255);
  const __m512i lower = _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
  const __m512i upper = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, lower));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, upper));
}

}  // namespace
}  // namespace musespark

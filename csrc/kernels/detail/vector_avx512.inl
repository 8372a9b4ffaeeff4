// The vector vocabulary on AVX-512: sixteen float lanes in one register. vector_avx2.inl defines
// the same names with the same bits. Included once per kernel file; everything has internal
// linkage.
//
//   vf  16 float lanes      vi  16 int32 lanes      vm  16 truth values
//   vmax(a, b) = a > b ? a : b   and   vmin(a, b) = a < b ? a : b   (a NaN gives b)
//   *_n: the first n lanes, 0 <= n <= 16; the others load as zero and are not stored.
//
// GCC 12's own AVX-512 header passes a variable to itself where an operand does not matter.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstdint>

#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

using vf = __m512;
using vi = __m512i;
using vm = __mmask16;

MS_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
MS_INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
MS_INLINE void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
MS_INLINE vm vfirst(std::int64_t n) { return static_cast<vm>((1u << n) - 1); }
MS_INLINE vf vload_n(const float* p, std::int64_t n) {
  return n == 16 ? vload(p) : _mm512_maskz_loadu_ps(vfirst(n), p);
}
MS_INLINE void vstore_n(float* p, vf x, std::int64_t n) {
  if (n == 16) {
    vstore(p, x);
  } else {
    _mm512_mask_storeu_ps(p, vfirst(n), x);
  }
}

MS_INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
MS_INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
MS_INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
MS_INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
MS_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
MS_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
MS_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }

MS_INLINE vi vbits(vf x) { return _mm512_castps_si512(x); }
MS_INLINE vf vfloat(vi x) { return _mm512_castsi512_ps(x); }
MS_INLINE vi iset(std::int32_t x) { return _mm512_set1_epi32(x); }
MS_INLINE vi iload(const std::int32_t* p) { return _mm512_loadu_si512(p); }
MS_INLINE void istore(void* p, vi x) { _mm512_storeu_si512(p, x); }
MS_INLINE vi iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
MS_INLINE vi iand(vi a, vi b) { return _mm512_and_si512(a, b); }
MS_INLINE vi ior(vi a, vi b) { return _mm512_or_si512(a, b); }
MS_INLINE vi ixor(vi a, vi b) { return _mm512_xor_si512(a, b); }
MS_INLINE vi imax(vi a, vi b) { return _mm512_max_epi32(a, b); }
MS_INLINE vi iumax(vi a, vi b) { return _mm512_max_epu32(a, b); }  // of unsigned numbers
template <int kBits>
MS_INLINE vi ishl(vi x) {
  return _mm512_slli_epi32(x, kBits);
}
template <int kBits>
MS_INLINE vi ishr(vi x) {
  return _mm512_srai_epi32(x, kBits);
}
// Products of 16-bit lanes (their low halves), sums of bytes, bits of yes where mask has ones.
MS_INLINE vi imul16(vi a, vi b) { return _mm512_mullo_epi16(a, b); }
MS_INLINE vi iadd8(vi a, vi b) { return _mm512_add_epi8(a, b); }
MS_INLINE vi iblend(vi mask, vi yes, vi no) {
  return _mm512_ternarylogic_epi32(mask, yes, no, 0xca);
}
// table[index] for each byte of index, 0 for 0x80 and above; the table has 16 bytes.
MS_INLINE vi ilookup(const std::uint8_t* table, vi index) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), index);
}
// Lane i: four times byte i of 16.
MS_INLINE vi ispread(const std::uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i source =
      _mm512_setr_epi32(0x00000000, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505,
                        0x06060606, 0x07070707, 0x08080808, 0x09090909, 0x0a0a0a0a, 0x0b0b0b0b,
                        0x0c0c0c0c, 0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), source);
}
MS_INLINE vi vround(vf x) { return _mm512_cvtps_epi32(x); }
MS_INLINE vf vconvert(vi x) { return _mm512_cvtepi32_ps(x); }

// a < b; a NaN compares false.
MS_INLINE vm vless(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MS_INLINE vm vunordered(vf x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
// Bit i: lane i.
MS_INLINE std::uint32_t vlane_bits(vm m) { return m; }
MS_INLINE vf vselect(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
MS_INLINE vi iselect(vm m, vi yes, vi no) { return _mm512_mask_blend_epi32(m, no, yes); }
// Lanes first <= lane < end; both may lie outside 0..16.
MS_INLINE vm vrange(std::int64_t first, std::int64_t end) {
  const std::int64_t low = first < 0 ? 0 : first > 16 ? 16 : first;
  const std::int64_t high = end < 0 ? 0 : end > 16 ? 16 : end;
  return static_cast<vm>(((1u << high) - 1) & ~((1u << low) - 1));
}

// p * 2^n rounded once; n integral, -151 <= n <= 129, or NaN with p NaN.
MS_INLINE vf vscale2(vf p, vf n) { return _mm512_scalef_ps(p, n); }

// The tree l[i] += l[i+8], +4, +2, +1, and the same with max.
MS_INLINE float vtree_sum(vf x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 l = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  l = _mm_add_ps(l, _mm_movehl_ps(l, l));
  return _mm_cvtss_f32(_mm_add_ss(l, _mm_movehdup_ps(l)));
}
MS_INLINE float vtree_max(vf x) {
  const __m256 half = _mm256_max_ps(_mm512_extractf32x8_ps(x, 1), _mm512_castps512_ps256(x));
  __m128 l = _mm_max_ps(_mm256_extractf128_ps(half, 1), _mm256_castps256_ps128(half));
  l = _mm_max_ps(_mm_movehl_ps(l, l), l);
  return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(l), l));
}
MS_INLINE std::int32_t itree_max(vi x) {
  const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  __m128i l = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  l = _mm_max_epi32(l, _mm_unpackhi_epi64(l, l));
  return _mm_cvtsi128_si32(_mm_max_epi32(l, _mm_shuffle_epi32(l, 1)));
}
// Lane i of the result, i < 8: the largest unsigned number of the sixteen from from + 16 i on. Two
// vectors become one at each step, as many lanes of each as of the other.
MS_INLINE vi iumax_rows(const std::int32_t* from) {
  vi x[8];
  for (int i = 0; i < 8; ++i) x[i] = iload(from + 16 * i);
  for (int i = 0; i < 4; ++i) {
    x[i] = iumax(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                 _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    x[i] = iumax(_mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]),
                 _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]));
  }
  const vi both =
      iumax(_mm512_shuffle_i32x4(x[0], x[1], 0x88), _mm512_shuffle_i32x4(x[0], x[1], 0xdd));
  const vi each = iumax(both, _mm512_shuffle_i32x4(both, both, 0xb1));
  return _mm512_shuffle_i32x4(each, each, 0xd8);
}

// Lane i of the result is lane i ^ stride.
MS_INLINE vf vswap1(vf x) { return _mm512_permute_ps(x, 0xb1); }
MS_INLINE vf vswap2(vf x) { return _mm512_permute_ps(x, 0x4e); }
MS_INLINE vf vswap4(vf x) { return _mm512_shuffle_f32x4(x, x, 0xb1); }
MS_INLINE vf vswap8(vf x) { return _mm512_shuffle_f32x4(x, x, 0x4e); }
// Lanes 0, 0, 1, 1, ... 7, 7.
MS_INLINE vf vtwice(vf x) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                               x);
}

// Sixteen halves, by VCVTPH2PS and VCVTPS2PH (to nearest even).
MS_INLINE vf vload_f16(const std::uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MS_INLINE void vstore_f16(std::uint8_t* p, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// The transpose of eight rows of sixteen halves: column i to to[16 * i .. + 7] as float, zeros
// after.
MS_INLINE void vcolumns_f16(const std::uint8_t* const (&row)[8], std::int64_t offset, float* to) {
  __m256i x[8], y[8];
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[i] + offset));
  }
  // Each step interleaves rows that lie half of them apart; halves 0-7 in the low 128 bits.
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = _mm256_unpacklo_epi16(x[i], x[i + 4]);
    y[2 * i + 1] = _mm256_unpackhi_epi16(x[i], x[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = _mm256_unpacklo_epi16(y[i], y[i + 4]);
    x[2 * i + 1] = _mm256_unpackhi_epi16(y[i], y[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = _mm256_unpacklo_epi16(x[i], x[i + 4]);
    y[2 * i + 1] = _mm256_unpackhi_epi16(x[i], x[i + 4]);
  }
  for (int i = 0; i < 8; ++i) {
    vstore(to + 16 * i, _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm256_castsi256_si128(y[i]))));
    vstore(to + 16 * (i + 8),
           _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm256_extracti128_si256(y[i], 1))));
  }
}

}  // namespace
}  // namespace musespark

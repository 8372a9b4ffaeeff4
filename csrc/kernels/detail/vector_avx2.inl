// The vector vocabulary on AVX2 with FMA and F16C: sixteen float lanes in two registers (lanes 0-7
// in a, 8-15 in b). vector_avx512.inl has the comments; the bits are the same.
#include <immintrin.h>

#include <cstdint>

#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

struct vf {
  __m256 a, b;
};
struct vi {
  __m256i a, b;
};
using vm = vf;  // all ones or all zeros in each lane

MS_INLINE vf vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
MS_INLINE vf vload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MS_INLINE void vstore(float* p, vf x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
MS_INLINE vi iset(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
MS_INLINE vi ilane() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
          _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
MS_INLINE vi igreater(vi x, vi y) {
  return {_mm256_cmpgt_epi32(x.a, y.a), _mm256_cmpgt_epi32(x.b, y.b)};
}
MS_INLINE vf vload_n(const float* p, std::int64_t n) {
  if (n == 16) return vload(p);
  const vi m = igreater(iset(static_cast<std::int32_t>(n)), ilane());
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
MS_INLINE void vstore_n(float* p, vf x, std::int64_t n) {
  if (n == 16) {
    vstore(p, x);
  } else {
    const vi m = igreater(iset(static_cast<std::int32_t>(n)), ilane());
    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
  }
}

MS_INLINE vf vadd(vf x, vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MS_INLINE vf vsub(vf x, vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MS_INLINE vf vmul(vf x, vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MS_INLINE vf vdiv(vf x, vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
MS_INLINE vf vfma(vf x, vf y, vf z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
MS_INLINE vf vmax(vf x, vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
MS_INLINE vf vmin(vf x, vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }

MS_INLINE vi vbits(vf x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
MS_INLINE vf vfloat(vi x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
MS_INLINE __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
MS_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
MS_INLINE vi iload(const std::int32_t* p) { return {load256(p), load256(p + 8)}; }
MS_INLINE void istore(void* p, vi x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
MS_INLINE vi iadd(vi x, vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
MS_INLINE vi iand(vi x, vi y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
MS_INLINE vi ior(vi x, vi y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
MS_INLINE vi ixor(vi x, vi y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
MS_INLINE vi imax(vi x, vi y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
MS_INLINE vi iumax(vi x, vi y) { return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)}; }
template <int kBits>
MS_INLINE vi ishl(vi x) {
  return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
}
template <int kBits>
MS_INLINE vi ishr(vi x) {
  return {_mm256_srai_epi32(x.a, kBits), _mm256_srai_epi32(x.b, kBits)};
}
MS_INLINE vi imul16(vi x, vi y) {
  return {_mm256_mullo_epi16(x.a, y.a), _mm256_mullo_epi16(x.b, y.b)};
}
MS_INLINE vi iadd8(vi x, vi y) { return {_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b)}; }
MS_INLINE vi iblend(vi mask, vi yes, vi no) { return ixor(no, iand(mask, ixor(yes, no))); }
MS_INLINE vi ilookup(const std::uint8_t* table, vi index) {
  const __m256i t = _mm256_broadcastsi128_si256(load128(table));
  return {_mm256_shuffle_epi8(t, index.a), _mm256_shuffle_epi8(t, index.b)};
}
MS_INLINE vi ispread(const std::uint8_t* p) {
  const __m256i bytes = _mm256_broadcastsi128_si256(load128(p));
  const __m256i low = _mm256_setr_epi32(0x00000000, 0x01010101, 0x02020202, 0x03030303, 0x04040404,
                                        0x05050505, 0x06060606, 0x07070707);
  const __m256i high = _mm256_or_si256(low, _mm256_set1_epi8(8));
  return {_mm256_shuffle_epi8(bytes, low), _mm256_shuffle_epi8(bytes, high)};
}
MS_INLINE vi vround(vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
MS_INLINE vf vconvert(vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

MS_INLINE vm vless(vf x, vf y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
MS_INLINE vm vunordered(vf x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
MS_INLINE std::uint32_t vlane_bits(vm m) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(m.a) | _mm256_movemask_ps(m.b) << 8);
}
MS_INLINE vf vselect(vm m, vf yes, vf no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
MS_INLINE vi iselect(vm m, vi yes, vi no) { return vbits(vselect(m, vfloat(yes), vfloat(no))); }
MS_INLINE vm vrange(std::int64_t first, std::int64_t end) {
  const std::int64_t low = first < 0 ? 0 : first > 16 ? 16 : first;
  const std::int64_t high = end < 0 ? 0 : end > 16 ? 16 : end;
  return vfloat(iand(igreater(ilane(), iset(static_cast<std::int32_t>(low) - 1)),
                     igreater(iset(static_cast<std::int32_t>(high)), ilane())));
}

// Without a scaling instruction: two factors, the first exact.
MS_INLINE __m256 scale2_half(__m256 p, __m256 n) {
  const __m256i k = _mm256_cvtps_epi32(n);
  const __m256i first = _mm256_srai_epi32(k, 1);
  const __m256i second = _mm256_sub_epi32(k, first);
  const __m256i bias = _mm256_set1_epi32(127);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23)));
  return _mm256_mul_ps(p,
                       _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23)));
}
MS_INLINE vf vscale2(vf p, vf n) { return {scale2_half(p.a, n.a), scale2_half(p.b, n.b)}; }

MS_INLINE float vtree_sum(vf x) {
  const __m256 half = _mm256_add_ps(x.a, x.b);
  __m128 l = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  l = _mm_add_ps(l, _mm_movehl_ps(l, l));
  return _mm_cvtss_f32(_mm_add_ss(l, _mm_movehdup_ps(l)));
}
MS_INLINE float vtree_max(vf x) {
  const __m256 half = _mm256_max_ps(x.b, x.a);
  __m128 l = _mm_max_ps(_mm256_extractf128_ps(half, 1), _mm256_castps256_ps128(half));
  l = _mm_max_ps(_mm_movehl_ps(l, l), l);
  return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(l), l));
}
MS_INLINE std::int32_t itree_max(vi x) {
  const __m256i half = _mm256_max_epi32(x.a, x.b);
  __m128i l = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  l = _mm_max_epi32(l, _mm_unpackhi_epi64(l, l));
  return _mm_cvtsi128_si32(_mm_max_epi32(l, _mm_shuffle_epi32(l, 1)));
}
MS_INLINE vi iumax_rows(const std::int32_t* from) {
  __m256i x[8];
  for (int i = 0; i < 8; ++i) {
    const vi row = iload(from + 16 * i);
    x[i] = _mm256_max_epu32(row.a, row.b);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_max_epu32(_mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]),
                            _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 2; ++i) {
    x[i] = _mm256_max_epu32(_mm256_unpacklo_epi64(x[2 * i], x[2 * i + 1]),
                            _mm256_unpackhi_epi64(x[2 * i], x[2 * i + 1]));
  }
  const __m256i all = _mm256_max_epu32(_mm256_permute2x128_si256(x[0], x[1], 0x20),
                                       _mm256_permute2x128_si256(x[0], x[1], 0x31));
  return {all, all};
}

MS_INLINE vf vswap1(vf x) { return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)}; }
MS_INLINE vf vswap2(vf x) { return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)}; }
MS_INLINE vf vswap4(vf x) {
  return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
}
MS_INLINE vf vswap8(vf x) { return {x.b, x.a}; }
MS_INLINE vf vtwice(vf x) {
  return {_mm256_permutevar8x32_ps(x.a, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
          _mm256_permutevar8x32_ps(x.a, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}

MS_INLINE vf vload_f16(const std::uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
MS_INLINE void vstore_f16(std::uint8_t* p, vf x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm256_cvtps_ph(x.b, kNearest));
}

MS_INLINE void vcolumns_f16(const std::uint8_t* const (&row)[8], std::int64_t offset, float* to) {
  __m256i x[8], y[8];
  for (int i = 0; i < 8; ++i) x[i] = load256(row[i] + offset);
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
    vstore(to + 16 * i, {_mm256_cvtph_ps(_mm256_castsi256_si128(y[i])), _mm256_setzero_ps()});
    vstore(to + 16 * (i + 8),
           {_mm256_cvtph_ps(_mm256_extracti128_si256(y[i], 1)), _mm256_setzero_ps()});
  }
}

}  // namespace
}  // namespace musespark

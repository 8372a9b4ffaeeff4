// Quantized matmul with AVX-512 VNNI. Bit-identical to scalar.cc.
//
//   M = 1    weights are unpacked to int16 in registers and meet int16 activations in vpdpwssd
//            (q8: biased bytes in vpdpbusd): the row streams once, nothing is stored.
//   M >= 2   a panel of 32 rows x kPanelCols columns is unpacked to biased bytes in L1, then a
//            register tile of 32 rows x up to 6 columns runs over it; sums between panels rest in out.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/quantize_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 1024;   // 32 x 1024 bytes = 32 KiB of L1
constexpr std::int64_t kPassRows = 504;     // activation rows per unpacked panel
constexpr int kTileCols = 6;

inline std::int32_t load_i32(const void* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

inline __m512 block_scales(const std::uint16_t* block) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
}

// Lanes of row block `index` that are rows of the matrix.
inline __mmask16 row_mask(const PackedMatrix& w, std::int64_t index) {
  const std::int64_t left = w.rows - index * kRowBlock;
  return left >= kRowBlock ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

constexpr std::int64_t block_cols(WeightFormat format) {
  return format == WeightFormat::q8 ? kBlockQ8 : kBlockQ4;
}

// ---- M = 1 ------------------------------------------------------------------------------------

// int8 activations as int16 pairs: per 64 columns 16 dwords (k0, k2) of each quad, 16 dwords (k1, k3).
void widen_activations(const std::int8_t* q, std::int64_t kp, std::int32_t* pairs) {
  for (std::int64_t k = 0; k < kp; k += 64) {
    const __m512i bytes = _mm512_load_si512(q + k);
    _mm512_store_si512(pairs + k / 2, _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8));
    _mm512_store_si512(pairs + k / 2 + 16, _mm512_srai_epi16(bytes, 8));
  }
}

// Exact sum over 64 columns for 16 rows; pairs as widen_activations writes them.
template <WeightFormat kFormat>
inline __m512i dot64_words(const std::uint8_t* codes, const std::int8_t* sub,
                           const std::int32_t* pairs) {
  const __m512i sub_low = sub_words(sub), sub_high = sub_words(sub + kRowBlock);
  const __m512i levels = q4_level_bytes();
  __m512i acc[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    const __m512i code = load512(codes + 64 * v);
    Words w;
    if constexpr (kFormat == WeightFormat::q4) {
      w = q4_words(code, levels, sub_low, sub_high);
    } else {
      const __m512i high = load512(codes + 512 + 64 * (v % 4));
      w = v < 4 ? q6_words<0>(code, high, sub_low, sub_high)
                : q6_words<1>(code, high, sub_low, sub_high);
    }
    acc[0] = _mm512_dpwssd_epi32(acc[0], w.low_even, _mm512_set1_epi32(pairs[v]));
    acc[1] = _mm512_dpwssd_epi32(acc[1], w.low_odd, _mm512_set1_epi32(pairs[16 + v]));
    acc[2] = _mm512_dpwssd_epi32(acc[2], w.high_even, _mm512_set1_epi32(pairs[8 + v]));
    acc[3] = _mm512_dpwssd_epi32(acc[3], w.high_odd, _mm512_set1_epi32(pairs[24 + v]));
  }
  return _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3]));
}

inline __m512i dot64_q8(const std::uint8_t* codes, const std::int8_t* q, std::int32_t bias) {
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512i acc[4] = {_mm512_set1_epi32(bias), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) {
    acc[v % 4] = _mm512_dpbusd_epi32(acc[v % 4], _mm512_xor_si512(load512(codes + 64 * v), flip),
                                     _mm512_set1_epi32(load_i32(q + 4 * v)));
  }
  return _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3]));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// kStreams row blocks side by side, 64 columns of each in turn. Several pages are then being read
// at once: a single stream stalls at every 4 KiB page, where the hardware prefetcher stops and the
// page walk begins. Codes are prefetched about 1 KiB ahead, the scales of the next kStreams row
// blocks a line a step. (q4 on Sapphire Rapids, 4 KiB pages: 17 GB/s plain, 28 so.)
template <WeightFormat kFormat, int kStreams>
void matvec_blocks(const MatmulArgs& a, std::int64_t first_block, const std::int32_t* pairs) {
  constexpr std::int64_t kGroups = block_cols(kFormat) / kActGroup;
  constexpr std::int64_t kStride = code_stride(kFormat);
  constexpr std::int64_t kAhead = kFormat == WeightFormat::q4 ? 2 : 1;   // about 1 KiB
  const std::int64_t groups = a.xq->cols / kActGroup;
  RowBlock rb[kStreams];
  __m512 f[kStreams], total[kStreams];
  for (int i = 0; i < kStreams; ++i) {
    rb[i] = row_block(a.w, first_block + i);
    f[i] = total[i] = _mm512_setzero_ps();
  }
  const std::int64_t to_next = kStreams * a.w.row_block_bytes;
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups;
    const __m512 scale = _mm512_set1_ps(a.xq->scale[g]);
    const std::int64_t g_ahead = g + kAhead;
    const std::int64_t ahead =
        g_ahead < groups ? g_ahead * kStride : (g_ahead - groups) * kStride + to_next;
#pragma GCC unroll 1
    for (int i = 0; i < kStreams; ++i) {
      const std::uint8_t* codes = rb[i].codes + g * kStride;
      for (std::int64_t line = 0; line < kStride; line += 64) prefetch(rb[i].codes + ahead + line);
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[i].row) + to_next + 64 * g);
      __m512i sum_i32x16;
      if constexpr (kFormat == WeightFormat::q8) {
        sum_i32x16 = dot64_q8(codes, a.xq->q + 64 * g, a.xq->bias[g]);
      } else {
        sum_i32x16 = dot64_words<kFormat>(codes, rb[i].sub + 2 * kRowBlock * g, pairs + 32 * g);
      }
      f[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_i32x16), scale, f[i]);
      if (block_ends) {
        total[i] = _mm512_fmadd_ps(f[i], block_scales(rb[i].block + g / kGroups * kRowBlock),
                                   total[i]);
        f[i] = _mm512_setzero_ps();
      }
    }
  }
  for (int i = 0; i < kStreams; ++i) {
    const std::int64_t b = first_block + i;
    _mm512_mask_storeu_ps(a.out + b * kRowBlock, row_mask(a.w, b),
                          _mm512_mul_ps(total[i], _mm512_loadu_ps(rb[i].row)));
  }
}

template <WeightFormat kFormat>
void matvec(const MatmulArgs& a) {
  std::int32_t* pairs = static_cast<std::int32_t*>(a.scratch);
  if constexpr (kFormat != WeightFormat::q8) widen_activations(a.xq->q, a.xq->cols, pairs);
  std::int64_t b = a.block_begin;
  for (; b + 8 <= a.block_end; b += 8) matvec_blocks<kFormat, 8>(a, b, pairs);
  if (b + 4 <= a.block_end) {
    matvec_blocks<kFormat, 4>(a, b, pairs);
    b += 4;
  }
  for (; b < a.block_end; ++b) matvec_blocks<kFormat, 1>(a, b, pairs);
}

// ---- M >= 2 -----------------------------------------------------------------------------------

// One chunk of columns of kBlocks row blocks, and the sums that rest between chunks. Those are kept
// apart from `out`: its rows are often a power of two apart and would share a few cache sets.
struct Panel {
  const std::uint8_t* bytes[2];    // w8 + 128, [quads][16 rows][4 k]
  const std::uint16_t* block[2];   // block scales from the chunk's first block on
  const float* row[2];
  __mmask16 mask[2];
  float* sums;                     // [tiles][kBlocks][kTileCols][16]
  std::int64_t m0;                 // first activation row of this pass
  std::int64_t rows;
  std::int64_t out_row;            // first output of block 0; block 1 is the next 16
  std::int64_t k0, cols;           // the chunk
  bool first, last;
};

// Where a register tile reads: weights of its row blocks, activations, their scales and biases.
template <int kBlocks>
struct TileAt {
  const std::uint8_t* w8[kBlocks];
  const std::int8_t* q;
  const float* scale;
  const std::int32_t* bias;
  std::int64_t kp, groups;
};

// Exact sums over the 64 columns of group g.
template <int kBlocks, int kRows>
inline void tile_dot(const TileAt<kBlocks>& t, std::int64_t g, __m512i (&acc)[kBlocks][kRows]) {
  for (int c = 0; c < kRows; ++c) {
    for (int b = 0; b < kBlocks; ++b) acc[b][c] = _mm512_set1_epi32(t.bias[c * t.groups + g]);
  }
#pragma GCC unroll 16
  for (int v = 0; v < 16; ++v) {
    __m512i w[kBlocks];
    for (int b = 0; b < kBlocks; ++b) w[b] = _mm512_load_si512(t.w8[b] + g * 1024 + v * 64);
#pragma GCC unroll 8
    for (int c = 0; c < kRows; ++c) {
      const __m512i x = _mm512_set1_epi32(load_i32(t.q + c * t.kp + g * 64 + v * 4));
      for (int b = 0; b < kBlocks; ++b) acc[b][c] = _mm512_dpbusd_epi32(acc[b][c], w[b], x);
    }
  }
}

// f += float(sum of 64 columns) * activation scale.
template <int kBlocks, int kRows>
inline void tile_group(const TileAt<kBlocks>& t, std::int64_t g, __m512 (&f)[kBlocks][kRows]) {
  __m512i acc[kBlocks][kRows];
  tile_dot<kBlocks, kRows>(t, g, acc);
#pragma GCC unroll 8
  for (int c = 0; c < kRows; ++c) {
    const __m512 s = _mm512_set1_ps(t.scale[c * t.groups + g]);
    for (int b = 0; b < kBlocks; ++b) {
      f[b][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[b][c]), s, f[b][c]);
    }
  }
}

// Blocks of 256 columns: sums += (f over the block) * block scale.
template <int kBlocks, int kRows>
inline void tile_blocks_of_256(const TileAt<kBlocks>& t, const Panel& p, float* sums) {
  constexpr std::int64_t kGroups = kBlockQ4 / kActGroup;
  const std::int64_t chunk_groups = p.cols / kActGroup;
  for (std::int64_t g0 = 0; g0 < chunk_groups; g0 += kGroups) {
    const std::int64_t g1 = g0 + kGroups < chunk_groups ? g0 + kGroups : chunk_groups;
    __m512 f[kBlocks][kRows];
    for (int b = 0; b < kBlocks; ++b) {
      for (int c = 0; c < kRows; ++c) f[b][c] = _mm512_setzero_ps();
    }
#pragma GCC unroll 1
    for (std::int64_t g = g0; g < g1; ++g) tile_group<kBlocks, kRows>(t, g, f);
    __asm__ volatile("" ::: "memory");   // or the loads of sums move up and spill f
    for (int b = 0; b < kBlocks; ++b) {
      const __m512 s = block_scales(p.block[b] + g0 / kGroups * kRowBlock);
#pragma GCC unroll 8
      for (int c = 0; c < kRows; ++c) {
        float* sum = sums + (b * kRows + c) * 16;
        _mm512_store_ps(sum, _mm512_fmadd_ps(f[b][c], s, _mm512_load_ps(sum)));
      }
    }
  }
}

// The same where a block is one group: the sums stay in registers instead of f.
template <int kBlocks, int kRows>
inline void tile_blocks_of_64(const TileAt<kBlocks>& t, const Panel& p, float* sums) {
  __m512 total[kBlocks][kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    total[i / kRows][i % kRows] = _mm512_load_ps(sums + 16 * i);
  }
  for (std::int64_t g = 0; g < p.cols / kActGroup; ++g) {
    __m512i acc[kBlocks][kRows];
    tile_dot<kBlocks, kRows>(t, g, acc);
    __m512 s[kBlocks];
    for (int b = 0; b < kBlocks; ++b) s[b] = block_scales(p.block[b] + g * kRowBlock);
#pragma GCC unroll 8
    for (int c = 0; c < kRows; ++c) {
      const __m512 x = _mm512_set1_ps(t.scale[c * t.groups + g]);
      for (int b = 0; b < kBlocks; ++b) {
        const __m512 f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[b][c]), x, _mm512_setzero_ps());
        total[b][c] = _mm512_fmadd_ps(f, s[b], total[b][c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlocks * kRows; ++i) {
    _mm512_store_ps(sums + 16 * i, total[i / kRows][i % kRows]);
  }
}

// kRows activation rows from m on, against kBlocks row blocks of the panel.
template <WeightFormat kFormat, int kBlocks, int kRows>
inline void tile(const MatmulArgs& a, const Panel& p, std::int64_t m) {
  TileAt<kBlocks> t;
  t.kp = a.xq->cols;
  t.groups = t.kp / kActGroup;
  t.q = a.xq->q + m * t.kp + p.k0;
  t.scale = a.xq->scale + m * t.groups + p.k0 / kActGroup;
  t.bias = a.xq->bias + m * t.groups + p.k0 / kActGroup;
  for (int b = 0; b < kBlocks; ++b) t.w8[b] = p.bytes[b];
  float* sums = p.sums + (m - p.m0) * kBlocks * kRowBlock;
  float* out = a.out + m * a.ldo + p.out_row;
  if (p.last) {   // rows of `out` lie pages apart
    for (int c = 0; c < kRows; ++c) {
      for (int b = 0; b < kBlocks; ++b) prefetch(out + c * a.ldo + b * kRowBlock);
    }
  }
  if (p.first) {
    for (int i = 0; i < kBlocks * kRows; ++i) _mm512_store_ps(sums + 16 * i, _mm512_setzero_ps());
  }
  if constexpr (kFormat == WeightFormat::q8) {
    tile_blocks_of_64<kBlocks, kRows>(t, p, sums);
  } else {
    tile_blocks_of_256<kBlocks, kRows>(t, p, sums);
  }
  if (!p.last) return;
  for (int b = 0; b < kBlocks; ++b) {
    const __m512 row = _mm512_loadu_ps(p.row[b]);
    for (int c = 0; c < kRows; ++c) {
      _mm512_mask_storeu_ps(out + c * a.ldo + b * kRowBlock, p.mask[b],
                            _mm512_mul_ps(_mm512_load_ps(sums + (b * kRows + c) * 16), row));
    }
  }
}

template <WeightFormat kFormat, int kBlocks>
void all_rows(const MatmulArgs& a, const Panel& p) {
  std::int64_t m = p.m0;
  const std::int64_t end = p.m0 + p.rows;
  for (; m + kTileCols <= end; m += kTileCols) tile<kFormat, kBlocks, kTileCols>(a, p, m);
  switch (end - m) {
    case 5: tile<kFormat, kBlocks, 5>(a, p, m); break;
    case 4: tile<kFormat, kBlocks, 4>(a, p, m); break;
    case 3: tile<kFormat, kBlocks, 3>(a, p, m); break;
    case 2: tile<kFormat, kBlocks, 2>(a, p, m); break;
    case 1: tile<kFormat, kBlocks, 1>(a, p, m); break;
    default: break;
  }
}

// Unpacks the panel; fetches the codes of the next one, and a line of the next row blocks' scales.
template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const MatmulArgs& a, const RowBlock (&rb)[kBlocks], std::uint8_t* to, Panel* p) {
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  const std::int64_t ahead = p->last ? to_next - p->k0 / 64 * code_stride(kFormat)
                                     : kPanelCols / 64 * code_stride(kFormat);
  for (int b = 0; b < kBlocks; ++b) {
    std::uint8_t* bytes = to + b * kPanelCols * kRowBlock;
    p->bytes[b] = bytes;
    p->block[b] = rb[b].block + p->k0 / block_cols(kFormat) * kRowBlock;
    for (std::int64_t k = p->k0; k < p->k0 + p->cols; k += 64) {
      const std::uint8_t* codes = rb[b].codes + k / 64 * code_stride(kFormat);
      for (int line = 0; line < code_stride(kFormat); line += 64) prefetch(codes + ahead + line);
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[b].row) + to_next + k);
      unpack64<kFormat, true>(codes, rb[b].sub + k / kSubGroup * kRowBlock,
                              bytes + (k - p->k0) * kRowBlock);
    }
  }
}

template <WeightFormat kFormat, int kBlocks>
void row_blocks(const MatmulArgs& a, std::int64_t first_block) {
  std::uint8_t* scratch = static_cast<std::uint8_t*>(a.scratch);
  const std::int64_t kp = a.xq->cols;
  RowBlock rb[kBlocks];
  Panel p;
  for (int b = 0; b < kBlocks; ++b) {
    rb[b] = row_block(a.w, first_block + b);
    p.row[b] = rb[b].row;
    p.mask[b] = row_mask(a.w, first_block + b);
  }
  p.out_row = first_block * kRowBlock;
  p.sums = reinterpret_cast<float*>(scratch + 2 * kPanelCols * kRowBlock);
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
      p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
      p.first = p.k0 == 0;
      p.last = p.k0 + p.cols == kp;
      unpack_panel<kFormat, kBlocks>(a, rb, scratch, &p);
      all_rows<kFormat, kBlocks>(a, p);
    }
  }
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m == 1) return matvec<kFormat>(a);
  std::int64_t b = a.block_begin;
  for (; b + 2 <= a.block_end; b += 2) row_blocks<kFormat, 2>(a, b);
  if (b < a.block_end) row_blocks<kFormat, 1>(a, b);
}

}  // namespace

void quantize_rows_avx512vnni(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                              const QuantizedRows* out) {
  const std::int64_t groups = out->cols / kActGroup;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t g = 0; g < groups; ++g) {
      quantize_group(x + i * ldx + g * kActGroup, k - g * kActGroup,
                     out->q + i * out->cols + g * kActGroup, out->scale + i * groups + g,
                     out->bias + i * groups + g);
    }
  }
}

void matmul_avx512vnni(const MatmulArgs* args) {
  switch (args->w.format) {
    case WeightFormat::q8: return matmul_quantized<WeightFormat::q8>(*args);
    case WeightFormat::q6: return matmul_quantized<WeightFormat::q6>(*args);
    case WeightFormat::q4: return matmul_quantized<WeightFormat::q4>(*args);
    default: return matmul_float_avx512vnni(args);
  }
}

}  // namespace musespark

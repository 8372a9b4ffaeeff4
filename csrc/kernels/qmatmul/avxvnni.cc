// Quantized matmul with AVX-VNNI. Bit-identical to scalar.cc.
//
//   M <= kFewRows   weights stream from memory to registers: few_avx2.inl, as biased bytes; with
//                   sub-scales and M <= 2 as int16 (bytes cost six operations more a code vector
//                   and two fewer a row).
//   more            a panel of 16 rows x kPanelCols columns is unpacked to biased bytes in L1, then
//                   a register tile of 16 weight rows x up to 6 activation rows runs over it; sums
//                   between panels rest in scratch memory.
#include <immintrin.h>

#include "kernels/entries.h"
#include "kernels/qmatmul/few_avx2.inl"
#include "kernels/qmatmul/few_avxvnni.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kPanelCols = 1024;  // 16 x 1024 bytes = 16 KiB of L1
constexpr std::int64_t kPassRows = 1020;   // activation rows per unpacked panel
constexpr int kTileRows = 6;               // 12 sums, two vectors of weights, one of activations

// One chunk of columns of a row block, and the sums that rest between chunks. Those are kept apart
// from `out`: its rows are often a power of two apart and would share a few cache sets.
struct Panel {
  const MatmulArgs* args;
  RowBlock rb;
  const std::uint8_t* bytes;  // w8 + 128, [quads][16 rows][4 k]
  float* sums;                // [rows][16]
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;      // the chunk
};

// acc += the exact sums over kQuads * 4 columns of rows 0..7 and 8..15, activation rows `stride`
// apart.
template <int kQuads, int kRows>
inline void tile_dot(const std::uint8_t* bytes, const std::int8_t* q, std::int64_t stride,
                     __m256i (&acc)[kRows][2]) {
#pragma GCC unroll 16
  for (int v = 0; v < kQuads; ++v) {
    const __m256i w0 = load256(bytes + 64 * v), w1 = load256(bytes + 64 * v + 32);
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      const __m256i x = _mm256_set1_epi32(load_i32(q + c * stride + 4 * v));
      acc[c][0] = _mm256_dpbusd_avx_epi32(acc[c][0], w0, x);
      acc[c][1] = _mm256_dpbusd_avx_epi32(acc[c][1], w1, x);
    }
  }
}

// sum += f * scale, 8 floats in memory.
inline void add_scaled(float* sum, __m256 f, __m256 scale) {
  _mm256_store_ps(sum, _mm256_fmadd_ps(f, scale, _mm256_load_ps(sum)));
}

// kRows activation rows from m on over the panel, for formats with a scale per 32 columns.
template <int kRows>
inline void tile_g32(const Panel& p, std::int64_t m) {
  const QuantizedRows& xq = *p.args->xq;
  const std::int64_t all_groups = xq.cols / kActGroup;
  const std::int64_t first = (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::uint16_t* block = p.rb.block + p.k0 / kBlockG32 * kRowBlock;
  float* sums = p.sums + m * kRowBlock;
  for (std::int64_t g = 0; g < p.cols / kActGroup; ++g, block += 2 * kRowBlock) {
    const std::int8_t* q = xq.q + (p.m0 + m) * xq.stride + p.k0 + g * kActGroup;
    const std::uint8_t* bytes = p.bytes + g * kActGroup * kRowBlock;
    __m256 f[kRows][2];  // rests in memory during the second half
#pragma GCC unroll 2
    for (int second = 0; second < 2; ++second) {
      rest_in_memory(f);
      __m256i acc[kRows][2];
#pragma GCC unroll 6
      for (int c = 0; c < kRows; ++c) {
        const std::int32_t* bias = xq.half_bias + 2 * (first + c * all_groups + g);
        acc[c][0] = acc[c][1] = _mm256_set1_epi32(bias[second]);
      }
      tile_dot<8, kRows>(bytes + second * 512, q + second * 32, xq.stride, acc);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256 s = block_scales(block + second * kRowBlock + 8 * half);
#pragma GCC unroll 6
        for (int c = 0; c < kRows; ++c) {
          const __m256 sum = _mm256_cvtepi32_ps(acc[c][half]);
          if (second == 0) {
            f[c][half] = _mm256_mul_ps(sum, s);
          } else {
            add_scaled(sums + c * kRowBlock + 8 * half, _mm256_fmadd_ps(sum, s, f[c][half]),
                       _mm256_set1_ps(xq.scale[first + c * all_groups + g]));
          }
        }
      }
    }
  }
}

// kRows activation rows from m on over the panel.
template <WeightFormat kFormat, int kRows>
inline void tile(const Panel& p, std::int64_t m) {
  if constexpr (is_g32(kFormat)) return tile_g32<kRows>(p, m);
  constexpr std::int64_t kGroups = is_g32(kFormat) ? 1 : block_cols(kFormat) / kActGroup;
  const QuantizedRows& xq = *p.args->xq;
  const std::int64_t all_groups = xq.cols / kActGroup, groups = p.cols / kActGroup;
  const std::int64_t first = (p.m0 + m) * all_groups + p.k0 / kActGroup;
  const std::uint16_t* block = p.rb.block + p.k0 / block_cols(kFormat) * kRowBlock;
  float* sums = p.sums + m * kRowBlock;
  __m256 f[kRows][2];  // rests in memory during a group
  for (int c = 0; c < kRows; ++c) f[c][0] = f[c][1] = _mm256_setzero_ps();
  for (std::int64_t g = 0; g < groups; ++g) {
    if constexpr (kGroups > 1) rest_in_memory(f);
    __m256i acc[kRows][2];
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      acc[c][0] = acc[c][1] = _mm256_set1_epi32(xq.bias[first + c * all_groups + g]);
    }
    tile_dot<16, kRows>(p.bytes + g * kActGroup * kRowBlock,
                        xq.q + (p.m0 + m) * xq.stride + p.k0 + g * kActGroup, xq.stride, acc);
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      const __m256 x = _mm256_set1_ps(xq.scale[first + c * all_groups + g]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        f[c][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[c][half]), x,
                                     kGroups == 1 ? _mm256_setzero_ps() : f[c][half]);
      }
    }
    if ((g + 1) % kGroups != 0 && g + 1 != groups) continue;
    const std::uint16_t* scales = block + g / kGroups * kRowBlock;
    const __m256 s[2] = {block_scales(scales), block_scales(scales + 8)};
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        add_scaled(sums + c * kRowBlock + 8 * half, f[c][half], s[half]);
        f[c][half] = _mm256_setzero_ps();
      }
    }
  }
}

// `count` <= kMost activation rows from m on.
template <WeightFormat kFormat, int kMost>
void some_rows(const Panel& p, std::int64_t m, std::int64_t count) {
  if (count == kMost) return tile<kFormat, kMost>(p, m);
  if constexpr (kMost > 1) some_rows<kFormat, kMost - 1>(p, m, count);
}

// In tiles as even as can be: a tile of few rows has too few sums to hide their latency.
template <WeightFormat kFormat>
void all_rows(const Panel& p) {
  std::int64_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  for (std::int64_t m = 0; tiles > 0; --tiles) {
    const std::int64_t count = (p.rows - m + tiles - 1) / tiles;
    some_rows<kFormat, kTileRows>(p, m, count);
    m += count;
  }
}

template <WeightFormat kFormat, int kSecond>
inline void unpack_quarter(const std::uint8_t* codes, std::int64_t ahead, int half, __m256i levels,
                           __m256i sub, std::uint8_t* to) {
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    prefetch_quarter<kFormat>(codes, ahead, 2 * half + kSecond, v);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 64 * (v + 8 * kSecond) + 32 * half),
                       code_bytes<kFormat, kSecond>(codes + 32 * half, v, levels, sub));
  }
}

// Unpacks the panel; fetches the codes of the next one, and a line of the next row block's scales.
template <WeightFormat kFormat>
void unpack_panel(const Panel& p, std::uint8_t* to) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const __m256i levels = byte_levels<kFormat>(p.args->w.format);
  const std::int64_t kp = p.args->xq->cols, to_next = p.args->w.row_block_bytes;
  const std::int64_t ahead =
      p.k0 + p.cols < kp ? kPanelCols / 64 * kStride : to_next - p.k0 / 64 * kStride;
  for (std::int64_t k = p.k0; k < p.k0 + p.cols; k += 64, to += 64 * kRowBlock) {
    prefetch(reinterpret_cast<const std::uint8_t*>(p.rb.row) + to_next + k);
    const std::uint8_t* codes = p.rb.codes + k / 64 * kStride;
    const std::int8_t* sub = p.rb.sub + k / kSubGroup * kRowBlock;
#pragma GCC unroll 1
    for (int half = 0; half < 2; ++half, sub += 8) {
      unpack_quarter<kFormat, 0>(codes, ahead, half, levels, sub_scales<kFormat>(sub), to);
      unpack_quarter<kFormat, 1>(codes, ahead, half, levels, sub_scales<kFormat>(sub + kRowBlock),
                                 to);
    }
  }
}

template <WeightFormat kFormat>
void pass_block(Panel p, std::int64_t block, std::uint8_t* bytes) {
  const std::int64_t kp = p.args->xq->cols;
  p.rb = row_block(p.args->w, block);
  p.bytes = bytes;
  __builtin_memset(p.sums, 0, p.rows * kRowBlock * sizeof *p.sums);
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    unpack_panel<kFormat>(p, bytes);
    all_rows<kFormat>(p);
  }
  for (std::int64_t m = 0; m < p.rows; ++m) {
    float* out = p.args->out + (p.m0 + m) * p.args->ldo + block * kRowBlock;
    for (int half = 0; half < 2; ++half) {
      const __m256 total = _mm256_load_ps(p.sums + m * kRowBlock + 8 * half);
      store_rows(p.args->w, block, half, out,
                 _mm256_mul_ps(total, _mm256_loadu_ps(p.rb.row + 8 * half)));
    }
  }
}

// M = 1 .. kFewRows, made up to one of a few sizes.
template <WeightFormat kFormat>
void few_rows(const MatmulArgs& a) {
  if constexpr (has_sub(kFormat)) {
    if (a.m == 1) return few<WordRows<kFormat, 1>>(a);
    if (a.m == 2) return few<WordRows<kFormat, 2>>(a);
  } else {
    if (a.m == 1) return few<ByteRows<kFormat, 1>>(a);
    if (a.m == 2) return few<ByteRows<kFormat, 2>>(a);
  }
  if (a.m <= 4) return few<ByteRows<kFormat, 4>>(a);
  if (a.m <= 6) return few<ByteRows<kFormat, 6>>(a);
  return few<ByteRows<kFormat, 8>>(a);
}

template <WeightFormat kFormat>
void matmul_quantized(const MatmulArgs& a) {
  if (a.m <= kFewRows) return few_rows<kFormat>(a);
  auto* bytes = static_cast<std::uint8_t*>(a.scratch);
  Panel p{};
  p.args = &a;
  p.sums = reinterpret_cast<float*>(bytes + kPanelCols * kRowBlock);
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (std::int64_t b = a.block_begin; b < a.block_end; ++b) pass_block<kFormat>(p, b, bytes);
  }
}

}  // namespace

void matmul_avxvnni(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_avx2(args);
}

}  // namespace musespark

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
constexpr std::int64_t kPassRows = 504;    // activation rows per unpacked panel
constexpr std::int64_t kPanels = 4;        // that share a chunk of activations
constexpr int kTileRows = 6;               // 12 sums, two vectors of weights, one of activations

// One chunk of columns of a row block, and the sums that rest between chunks. Those are kept apart
// from `out`: its rows are often a power of two apart and would share a few cache sets.
struct Panel {
  const MatmulArgs* args;
  RowBlock rb;
  std::int64_t block;         // its index
  const std::uint8_t* bytes;  // w8 + 128, [quads][16 rows][4 k]
  float* sums;                // [rows][16]
  std::int64_t m0, rows;      // activation rows m0 .. m0 + rows - 1
  std::int64_t k0, cols;      // the chunk
  bool last;                  // it is the last: sums go to `out`
};

// Where a register tile reads. Rows 0 to 2 are addressed from one pointer, 3 to 5 from another:
// that leaves no address to be computed between two products.
template <int kRows>
struct TileAt {
  const std::uint8_t* bytes;
  const std::int8_t* q[2];  // of rows 0 and 3
  std::int64_t stride;      // bytes from row to row
  const float* scale;
  const std::int32_t* bias;
  const std::int32_t* half_bias;
  std::int64_t all_groups;  // scales and biases from row to row
  const std::uint16_t* block;
  float* sums;  // [kRows][16]

  TileAt(const Panel& p, std::int64_t m, std::int64_t columns_of_block)
      : bytes(p.bytes), stride(p.args->xq->stride), all_groups(p.args->xq->cols / kActGroup) {
    const QuantizedRows& xq = *p.args->xq;
    const std::int64_t first = (p.m0 + m) * all_groups + p.k0 / kActGroup;
    q[0] = xq.q + (p.m0 + m) * stride + p.k0;
    q[1] = opaque(q[0] + 3 * stride);
    scale = xq.scale + first;
    bias = xq.bias + first;
    half_bias = xq.half_bias + 2 * first;
    block = p.rb.block + p.k0 / columns_of_block * kRowBlock;
    sums = p.sums + m * kRowBlock;
  }
};

// acc += the exact sums over kQuads * 4 columns from column `first` on.
template <int kQuads, int kRows>
[[gnu::always_inline]] inline void tile_dot(const TileAt<kRows>& t, std::int64_t first,
                                            __m256i (&acc)[kRows][2]) {
  const std::uint8_t* bytes = t.bytes + first * kRowBlock;
#pragma GCC unroll 16
  for (int v = 0; v < kQuads; ++v) {
    const __m256i w0 = load256(bytes + 64 * v), w1 = load256(bytes + 64 * v + 32);
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      const __m256i x = _mm256_set1_epi32(load_i32(t.q[c / 3] + c % 3 * t.stride + first + 4 * v));
      acc[c][0] = _mm256_dpbusd_avx_epi32(acc[c][0], w0, x);
      acc[c][1] = _mm256_dpbusd_avx_epi32(acc[c][1], w1, x);
    }
  }
}

// Sums of group g begin with the bias.
template <int kRows>
[[gnu::always_inline]] inline void tile_group(const TileAt<kRows>& t, std::int64_t g,
                                              __m256i (&acc)[kRows][2]) {
#pragma GCC unroll 6
  for (int c = 0; c < kRows; ++c) {
    acc[c][0] = acc[c][1] = _mm256_set1_epi32(t.bias[c * t.all_groups + g]);
  }
  tile_dot<16, kRows>(t, 64 * g, acc);
}

// The same over the first (kSecond = 0) or the last 32 columns of group g.
template <int kSecond, int kRows>
[[gnu::always_inline]] inline void tile_half_group(const TileAt<kRows>& t, std::int64_t g,
                                                   __m256i (&acc)[kRows][2]) {
#pragma GCC unroll 6
  for (int c = 0; c < kRows; ++c) {
    const std::int32_t* bias = t.half_bias + 2 * (c * t.all_groups + g);
    acc[c][0] = acc[c][1] = _mm256_set1_epi32(bias[kSecond]);
  }
  tile_dot<8, kRows>(t, 64 * g + 32 * kSecond, acc);
}

// A scale per 32 columns.
template <int kRows>
inline void tile_blocks_of_32(const TileAt<kRows>& t, std::int64_t groups) {
  __m256 f[kRows][2];  // rests in memory during the second half
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    tile_half_group<0, kRows>(t, g, acc);
    both_scales(t.block + 2 * g * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      f[i / 2][i % 2] = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2]);
    }
    rest_in_memory(f);
    tile_half_group<1, kRows>(t, g, acc);
    both_scales(t.block + (2 * g + 1) * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      add_scaled(t.sums + 8 * i,
                 _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]), s[i % 2], f[i / 2][i % 2]),
                 _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]));
    }
  }
}

// A scale per 64 columns.
template <int kRows>
inline void tile_blocks_of_64(const TileAt<kRows>& t, std::int64_t groups) {
  for (std::int64_t g = 0; g < groups; ++g) {
    __m256i acc[kRows][2];
    __m256 s[2];
    tile_group<kRows>(t, g, acc);
    both_scales(t.block + g * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) {
      const __m256 x = _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]);
      const __m256 sum = _mm256_cvtepi32_ps(acc[i / 2][i % 2]);
      add_scaled(t.sums + 8 * i, _mm256_fmadd_ps(sum, x, _mm256_setzero_ps()), s[i % 2]);
    }
  }
}

// A scale per 256 columns.
template <int kRows>
inline void tile_blocks_of_256(const TileAt<kRows>& t, std::int64_t groups) {
  constexpr std::int64_t kGroups = kBlockQ4 / kActGroup;
  for (std::int64_t g0 = 0; g0 < groups; g0 += kGroups) {
    __m256 f[kRows][2], s[2];  // f rests in memory during a group
    for (int c = 0; c < kRows; ++c) f[c][0] = f[c][1] = _mm256_setzero_ps();
    const std::int64_t end = g0 + kGroups < groups ? g0 + kGroups : groups;
#pragma GCC unroll 1
    for (std::int64_t g = g0; g < end; ++g) {
      rest_in_memory(f);
      __m256i acc[kRows][2];
      tile_group<kRows>(t, g, acc);
#pragma GCC unroll 12
      for (int i = 0; i < 2 * kRows; ++i) {
        f[i / 2][i % 2] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i / 2][i % 2]),
                            _mm256_set1_ps(t.scale[i / 2 * t.all_groups + g]), f[i / 2][i % 2]);
      }
    }
    both_scales(t.block + g0 / kGroups * kRowBlock, s);
#pragma GCC unroll 12
    for (int i = 0; i < 2 * kRows; ++i) add_scaled(t.sums + 8 * i, f[i / 2][i % 2], s[i % 2]);
  }
}

// kRows activation rows from m on over the panel. Not inlined, or its registers mix with others'.
template <WeightFormat kFormat, int kRows>
[[gnu::noinline]] void tile(const Panel& p, std::int64_t m) {
  const TileAt<kRows> t(p, m, block_cols(kFormat));
  const std::int64_t groups = p.cols / kActGroup;
  if constexpr (is_g32(kFormat)) {
    tile_blocks_of_32<kRows>(t, groups);
  } else if constexpr (kFormat == WeightFormat::q8) {
    tile_blocks_of_64<kRows>(t, groups);
  } else {
    tile_blocks_of_256<kRows>(t, groups);
  }
}

// `count` <= kMost activation rows from m on.
template <WeightFormat kFormat, int kMost>
void some_rows(const Panel& p, std::int64_t m, std::int64_t count) {
  if (count == kMost) return tile<kFormat, kMost>(p, m);
  if constexpr (kMost > 1) some_rows<kFormat, kMost - 1>(p, m, count);
}

// Where the results of row m go: lines that lie pages apart.
inline float* out_of(const Panel& p, std::int64_t m) {
  return p.args->out + (p.m0 + m) * p.args->ldo + p.block * kRowBlock;
}

// The sums of `count` rows from m on, times the row scales, to `out`.
void store_sums(const Panel& p, std::int64_t m, std::int64_t count) {
  for (std::int64_t end = m + count; m < end; ++m) {
    for (int half = 0; half < 2; ++half) {
      const __m256 total = _mm256_load_ps(p.sums + m * kRowBlock + 8 * half);
      store_rows(p.args->w, p.block, half, out_of(p, m),
                 _mm256_mul_ps(total, _mm256_loadu_ps(p.rb.row + 8 * half)));
    }
  }
}

// In tiles as even as can be: a tile of few rows has too few sums to hide their latency.
template <WeightFormat kFormat>
void all_rows(const Panel& p) {
  std::int64_t tiles = (p.rows + kTileRows - 1) / kTileRows;
  for (std::int64_t m = 0; tiles > 0; --tiles) {
    const std::int64_t count = (p.rows - m + tiles - 1) / tiles;
    for (std::int64_t i = 0; i < count && p.last; ++i) prefetch(out_of(p, m + i));
    some_rows<kFormat, kTileRows>(p, m, count);
    if (p.last) store_sums(p, m, count);
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

// Unpacks the panel; fetches the codes `ahead`, and a line of the next row block's scales.
template <WeightFormat kFormat>
void unpack_panel(const Panel& p, std::int64_t ahead, std::uint8_t* to) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const __m256i levels = byte_levels<kFormat>(p.args->w.format);
  const std::int64_t to_next = p.args->w.row_block_bytes;
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

// `count` row blocks from `first` on in panels side by side: each chunk of the activations meets
// all of them while it is in the second-level cache.
template <WeightFormat kFormat>
void row_blocks(Panel p, std::int64_t first, std::int64_t count) {
  auto* bytes = static_cast<std::uint8_t*>(p.args->scratch);
  auto* sums = reinterpret_cast<float*>(bytes + kPanelCols * kRowBlock);
  const std::int64_t kp = p.args->xq->cols;
  p.bytes = bytes;
  __builtin_memset(sums, 0, count * p.rows * kRowBlock * sizeof *sums);
  for (p.k0 = 0; p.k0 < kp; p.k0 += kPanelCols) {
    p.cols = kp - p.k0 < kPanelCols ? kp - p.k0 : kPanelCols;
    p.last = p.k0 + p.cols == kp;
    for (std::int64_t i = 0; i < count; ++i) {
      p.block = first + i;
      p.rb = row_block(p.args->w, p.block);
      p.sums = sums + i * p.rows * kRowBlock;
      unpack_panel<kFormat>(p, panel_ahead<kFormat>(*p.args, p.k0, kPanelCols, i, count), bytes);
      all_rows<kFormat>(p);
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
  Panel p{};
  p.args = &a;
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (std::int64_t b = a.block_begin; b < a.block_end; b += kPanels) {
      row_blocks<kFormat>(p, b, a.block_end - b < kPanels ? a.block_end - b : kPanels);
    }
  }
}

}  // namespace

void matmul_avxvnni(const MatmulArgs* args) {
  const bool quantized =
      with_format(args->w.format, [&](auto format) { matmul_quantized<format.value>(*args); });
  if (!quantized) matmul_float_avx2(args);
}

}  // namespace musespark

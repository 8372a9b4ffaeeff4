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
#include "kernels/qmatmul/panel_avx2.inl"
#include "kernels/qmatmul/shared_avx2.inl"
#include "kernels/qmatmul/stream.inl"
#include "kernels/qmatmul/unpack_avx2.inl"

namespace musespark {
namespace {

constexpr std::int64_t kFewRows = 8;
constexpr std::int64_t kPanelCols = 1024;  // 16 x 1024 bytes = 16 KiB of L1
constexpr std::int64_t kPassRows = 512;    // activation rows per unpacked panel
constexpr int kTileRows = 6;               // 12 sums, two vectors of weights, one of activations

struct Panel : PanelRows {
  const std::uint8_t* bytes;  // w8 + 128, [quads][16 rows][4 k]
};

// Where a register tile reads. Rows 0 to 2 are addressed from one pointer, 3 to 5 from another:
// that leaves no address to be computed between two products.
template <int kCount>
struct TileAt {
  static constexpr int kRows = kCount;
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

  // acc += the exact sums over kQuads * 4 columns from column `first` on.
  template <int kQuads>
  [[gnu::always_inline]] inline void dot(std::int64_t first, __m256i (&acc)[kRows][2]) const {
    const std::uint8_t* bytes = this->bytes + first * kRowBlock;
#pragma GCC unroll 16
    for (int v = 0; v < kQuads; ++v) {
      const __m256i w0 = load256(bytes + 64 * v), w1 = load256(bytes + 64 * v + 32);
#pragma GCC unroll 6
      for (int c = 0; c < kRows; ++c) {
        const __m256i x = _mm256_set1_epi32(load_i32(q[c / 3] + c % 3 * stride + first + 4 * v));
        acc[c][0] = _mm256_dpbusd_avx_epi32(acc[c][0], w0, x);
        acc[c][1] = _mm256_dpbusd_avx_epi32(acc[c][1], w1, x);
      }
    }
  }
  // Sums begin with the bias.
  [[gnu::always_inline]] inline void groups(std::int64_t g, std::int64_t count,
                                            __m256i (&acc)[kRows][2]) const {
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      acc[c][0] = acc[c][1] = _mm256_set1_epi32(bias[c * all_groups + g]);
    }
#pragma GCC unroll 1
    for (std::int64_t end = g + count; g < end; ++g) dot<16>(64 * g, acc);
  }
  template <int kSecond>
  [[gnu::always_inline]] inline void half_group(std::int64_t g, __m256i (&acc)[kRows][2]) const {
#pragma GCC unroll 6
    for (int c = 0; c < kRows; ++c) {
      const std::int32_t* both = half_bias + 2 * (c * all_groups + g);
      acc[c][0] = acc[c][1] = _mm256_set1_epi32(both[kSecond]);
    }
    dot<8>(64 * g + 32 * kSecond, acc);
  }
};

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
  auto* sums = reinterpret_cast<float*>(bytes + kPanelCols * kRowBlock);
  Panel p{};
  p.args = &a;
  p.bytes = bytes;
  for (p.m0 = 0; p.m0 < a.m; p.m0 += kPassRows) {
    p.rows = a.m - p.m0 < kPassRows ? a.m - p.m0 : kPassRows;
    for (std::int64_t b = a.block_begin; b < a.block_end; b += kPanels) {
      const std::int64_t count = a.block_end - b < kPanels ? a.block_end - b : kPanels;
      row_blocks<kFormat, kPanelCols>(p, b, count, sums, [&](Panel& panel, std::int64_t ahead) {
        unpack_panel<kFormat>(panel, ahead, bytes);
        all_rows<kFormat, TileAt, kTileRows>(panel);
      });
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

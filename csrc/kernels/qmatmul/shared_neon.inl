// What the files of the AArch64 matmul share: scales, the tail of a row block, and the walk over
// panels that a level fills with its own tiles.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/unpack_neon.inl"

namespace musespark {
namespace {

// Activation groups that share a block scale; not of the formats with two scales per group.
constexpr std::int64_t groups_per_block(WeightFormat format) {
  return is_g32(format) ? 1 : block_cols(format) / kActGroup;
}

// Block scales of four rows.
MS_INLINE float32x4_t block_scales(const std::uint16_t* block) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(block)));
}

// Rows of row block `index` that are rows of the matrix.
MS_INLINE std::int64_t rows_of(const PackedMatrix& w, std::int64_t index) {
  const std::int64_t left = w.rows - index * kRowBlock;
  return left < kRowBlock ? left : kRowBlock;
}

MS_INLINE void store_rows(float* out, const float32x4_t (&v)[kParts], std::int64_t rows) {
  if (rows == kRowBlock) {
    for (int part = 0; part < kParts; ++part) vst1q_f32(out + 4 * part, v[part]);
    return;
  }
  float lane[kRowBlock];
  for (int part = 0; part < kParts; ++part) vst1q_f32(lane + 4 * part, v[part]);
  for (std::int64_t i = 0; i < rows; ++i) out[i] = lane[i];
}

// Fetches the codes of 64 columns.
template <WeightFormat kFormat>
MS_INLINE void fetch_codes(const std::uint8_t* codes) {
  unroll<static_cast<int>(code_stride(kFormat) / 64)>(
      [&](auto line) MS_LAMBDA { __builtin_prefetch(codes + 64 * line); });
}

// The codes that the panel of `cols` columns from k0 is followed by: of the same row block, or of
// the one `blocks` further. Tiles of the first activation rows fetch them, so that memory works
// while the panel is computed: at 5 to 16 rows both take about as long.
template <WeightFormat kFormat>
MS_INLINE const std::uint8_t* next_codes(const MatmulArgs& a, const RowBlock& rb, std::int64_t k0,
                                         std::int64_t cols, int blocks) {
  const std::int64_t end = k0 + cols;
  return end < a.xq->cols ? rb.codes + end / kActGroup * code_stride(kFormat)
                          : rb.codes + blocks * a.w.row_block_bytes;
}

}  // namespace
}  // namespace musespark

// Where the parts of a row block lie (formats/weights.h), for kernels: static, no checks.
// formats/weights_codec.h holds the checked twin that packers and loaders use.
#pragma once

#include <cstdint>

#include "formats/weights.h"

namespace musespark {
namespace {

// Whether the format has one f16 scale per 32 columns and no sub-scales.
constexpr bool is_g32(WeightFormat format) {
  return format == WeightFormat::q8g32h || format == WeightFormat::q4g32h ||
         format == WeightFormat::iq4g32h || format == WeightFormat::mxfp4;
}

constexpr bool has_sub(WeightFormat format) {
  return format == WeightFormat::q4 || format == WeightFormat::q6;
}

constexpr bool is_byte(WeightFormat format) {
  return format == WeightFormat::q8 || format == WeightFormat::q8g32h ||
         format == WeightFormat::q8g1024h;
}

// Columns that share a block scale.
constexpr std::int64_t block_cols(WeightFormat format) {
  return is_g32(format)                     ? kBlockG32
         : format == WeightFormat::q8       ? kBlockQ8
         : format == WeightFormat::q8g1024h ? kBlockQ8Wide
                                            : kBlockQ4;
}

// Bytes of codes per 64 columns.
constexpr std::int64_t code_stride(WeightFormat format) {
  return is_byte(format) ? 1024 : format == WeightFormat::q6 ? 768 : 512;
}

// The levels of a 4-bit format. Templates for formats with a scale per 32 columns take it at run
// time and are instantiated once for all of them, as q4g32h.
constexpr const std::int8_t (&levels_of(WeightFormat format))[16] {
  return format == WeightFormat::q4g32h  ? kInt4Level
         : format == WeightFormat::mxfp4 ? kE2m1Level
                                         : kQ4Level;
}

// Activation rows that the i8mm kernel keeps in pairs at a time: a second-level cache holds them,
// for every panel of weights reads them all.
constexpr std::int64_t paired_rows(std::int64_t kp) {
  constexpr std::int64_t kBytes = 1 << 20, kMost = 256, kTile = 8;
  const std::int64_t rows = kBytes / kp / kTile * kTile;
  return rows > kMost ? kMost : rows < kTile ? kTile : rows;
}

struct RowBlock {
  const float* row;            // [16]
  const std::uint16_t* block;  // [ceil(Kp/B)][16] f16
  const std::int8_t* sub;      // [Kp/32][16], q4 and q6
  const std::uint8_t* codes;   // 64-byte aligned
};

[[maybe_unused]] inline std::int64_t padded_cols(std::int64_t cols) {
  return (cols + kActGroup - 1) / kActGroup * kActGroup;
}

// Row block `index` of a quantized matrix.
[[maybe_unused]] inline RowBlock row_block(const PackedMatrix& w, std::int64_t index) {
  const std::uint8_t* p = w.data + index * w.row_block_bytes;
  const std::int64_t kp = padded_cols(w.cols);
  const std::int64_t blocks = (kp + block_cols(w.format) - 1) / block_cols(w.format);
  RowBlock rb;
  rb.row = reinterpret_cast<const float*>(p);
  std::int64_t at = kRowBlock * 4;
  rb.block = reinterpret_cast<const std::uint16_t*>(p + at);
  at += blocks * kRowBlock * 2;
  rb.sub = reinterpret_cast<const std::int8_t*>(p + at);
  if (has_sub(w.format)) at += kp / kSubGroup * kRowBlock;
  rb.codes = p + (at + 63) / 64 * 64;
  return rb;
}

// The format's template argument as a value: f(Format<q4>{}). False for f32 and bf16.
template <WeightFormat kFormat>
struct Format {
  static constexpr WeightFormat value = kFormat;
};
template <class F>
[[maybe_unused]] inline bool with_format(WeightFormat format, F f) {
  switch (format) {
    case WeightFormat::q8:
      f(Format<WeightFormat::q8>{});
      return true;
    case WeightFormat::q6:
      f(Format<WeightFormat::q6>{});
      return true;
    case WeightFormat::q4:
      f(Format<WeightFormat::q4>{});
      return true;
    case WeightFormat::q8g32h:
      f(Format<WeightFormat::q8g32h>{});
      return true;
    case WeightFormat::q8g1024h:
      f(Format<WeightFormat::q8g1024h>{});
      return true;
    case WeightFormat::q4g32h:
    case WeightFormat::iq4g32h:
    case WeightFormat::mxfp4:
      f(Format<WeightFormat::q4g32h>{});
      return true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace musespark

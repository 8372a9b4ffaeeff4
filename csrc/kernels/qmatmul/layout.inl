// Where the parts of a row block lie (formats/weights.h), for kernels: static, no checks.
// formats/weights_codec.h holds the checked twin that packers and loaders use.
#pragma once

#include <cstdint>

#include "formats/weights.h"

namespace musespark {
namespace {

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
  const bool has_sub = w.format != WeightFormat::q8;
  const std::int64_t blocks = has_sub ? (kp + kBlockQ4 - 1) / kBlockQ4 : kp / kBlockQ8;
  RowBlock rb;
  rb.row = reinterpret_cast<const float*>(p);
  std::int64_t at = kRowBlock * 4;
  rb.block = reinterpret_cast<const std::uint16_t*>(p + at);
  at += blocks * kRowBlock * 2;
  rb.sub = reinterpret_cast<const std::int8_t*>(p + at);
  if (has_sub) at += kp / kSubGroup * kRowBlock;
  rb.codes = p + (at + 63) / 64 * 64;
  return rb;
}

}  // namespace
}  // namespace musespark

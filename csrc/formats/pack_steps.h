// The two vector steps of packing (pack.inl), one pair per instruction set, all with the same bits.
// Only pack.cc calls them.
#pragma once

#include <cstdint>

#include "formats/weights.h"

namespace musespark {

// 16 rows of a quantized format, column by column.
struct PackRows {
  WeightFormat format;
  std::int64_t cols;  // K, unpadded
  std::int64_t block_cols;
  const float* u;        // [K][16]
  float* scales;         // [groups][16], written by fit, read by encode
  const float* inverse;  // [blocks][16], read by encode: w8 = u * inverse
  std::int8_t* sub;      // [Kp/32][16], written by encode (q4, q6)
  std::uint8_t* codes;   // [Kp][16], one code a byte, written by encode
};

struct PackSteps {
  void (*fit)(const PackRows& rows);
  void (*encode)(const PackRows& rows);
};

extern const PackSteps pack_steps_scalar;
#if defined(__x86_64__)
extern const PackSteps pack_steps_avx2;
extern const PackSteps pack_steps_avx512vnni;
#endif

}  // namespace musespark

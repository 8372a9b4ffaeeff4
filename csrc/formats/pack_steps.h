// The vector steps of packing (pack.inl), one set per instruction set, all with the same bits.
// Only pack.cc calls them.
#pragma once

#include <cstdint>

#include "formats/weights.h"

namespace musespark {

// 16 rows of a quantized format, column by column.
struct PackRows {
  WeightFormat format;
  bool quick;
  std::int64_t cols;  // K, unpadded
  std::int64_t block_cols;
  const float* to_unit;     // [16], one over the largest magnitude of a row, or 0
  float* u;                 // [K][16], multiplied by to_unit by fit
  float* scales;            // [groups][16], written by fit, read by encode
  const float* inverse;     // [blocks][16], read by encode: w8 = u * inverse
  const float* importance;  // [K]: how much a column's squared error counts; null: all the same
  std::int8_t* sub;         // [Kp/32][16], written by encode (q4, q6)
  std::uint8_t* codes;      // [Kp][16], one code a byte, written by encode
};

// What error feedback adds to them (pack.h): u is then what columns are rounded from, and changes
// as errors arrive.
struct PackFeedback {
  const float* factor;  // [K][K], upper triangle without its diagonal
  const float* exact;   // [K][16], the numbers of the matrix in units of u
  const float* step;    // [blocks][16], u of one w8
  float* missed;        // [K][16], exact minus packed of the columns so far
};

inline constexpr std::int64_t kPackTile = 256;  // columns that are turned at a time
inline constexpr std::int64_t kPackGroup = 16;  // kStoredGroup of stored.h

// kPackTile columns of 16 rows as decode_integers gives them: value k of row r is
// scales[k / 16][r] * codes[r][k] - leasts[k / 16][r].
struct PackTile {
  std::int8_t codes[kRowBlock][kPackTile];
  float scales[kPackTile / kPackGroup][kRowBlock];
  float leasts[kPackTile / kPackGroup][kRowBlock];
};

struct PackSteps {
  // `count` columns of 16 rows, row r at rows + r * kPackTile, to columns [count][16]; largest[r]
  // becomes the largest of itself and the bits of the row's magnitudes.
  void (*turn)(const float* rows, std::int64_t count, float* columns, std::uint32_t* largest);
  // The same from integers; `count` is a multiple of kPackGroup.
  void (*turn_integers)(const PackTile& tile, std::int64_t count, float* columns,
                        std::uint32_t* largest);
  void (*fit)(const PackRows& rows);
  void (*encode)(const PackRows& rows);
  // fit and encode of error feedback, `n` columns from k, of one block: refit leaves u alone; carry
  // adds what columns [from, k) missed to u; encode_fed carries from column to column, and of
  // formats with sub-scales takes one group.
  void (*refit)(const PackRows& rows, std::int64_t k, int n);
  void (*carry)(const PackRows& rows, const PackFeedback& feedback, std::int64_t from,
                std::int64_t k, int n);
  void (*encode_fed)(const PackRows& rows, const PackFeedback& feedback, std::int64_t k, int n);
  // Codes [padded_cols][16] of `bits` (8, 6 or 4) to their places in a row block (weights.h).
  void (*lay_out)(const std::uint8_t* codes, std::int64_t padded_cols, int bits, std::uint8_t* to);
};

extern const PackSteps pack_steps_scalar;
#if defined(__x86_64__)
extern const PackSteps pack_steps_avx2;
extern const PackSteps pack_steps_avx512vnni;
#endif

}  // namespace musespark

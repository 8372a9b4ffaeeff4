// Repacking of matrices that are quantized already into the formats with a scale per 32 columns.
// Nothing is rounded: decode_row of the result is the number that the source stands for, or there
// is no result. The bytes are a function of the source alone.
#pragma once

#include <cstdint>

#include "formats/stored.h"
#include "formats/weights.h"

namespace musespark {

// Rows of GGUF blocks of 32 columns, each scale first:
//
//   q8g32h   Q8_0    f16, 32 int8                                          34 bytes
//   q4g32h   Q4_0    f16, 16 bytes: column j in the low nibble of byte j,
//                    column 16 + j in its high nibble                      18 bytes
//   iq4g32h  IQ4_NL  as Q4_0                                               18 bytes
//   mxfp4    MXFP4   e8m0, 16 bytes as Q4_0                                17 bytes
struct BlockMatrix {
  const std::uint8_t* data;
  std::int64_t rows;
  std::int64_t cols;       // a multiple of 32
  std::int64_t row_bytes;  // from one row to the next
};

// Whether rows of `type` are such blocks for `format`.
bool holds_exactly(WeightFormat format, StoredType type);

// Bytes of one block; throws InvalidRequest for a format that has none.
std::int64_t source_block_bytes(WeightFormat format);

// Packs row blocks [begin, end) of `from` to their places in `to`, the start of the whole packed
// matrix. Calls on disjoint ranges may run at the same time.
//
// An f16 scale is kept, with 1 as the row's scale. An e8m0 scale e is 2^(e - 128) times kE2m1Level;
// the row's scale is the power of two that lets all of its blocks be f16 (2^-24 to 2^15), 1 if that
// will do. Blocks of zeros get scale 0 whatever theirs is.
//
// Throws InvalidRequest naming row and block for a scale that is not finite (e8m0: above 252, where
// a level overflows a float; 255 is NaN), for cols that are no multiple of 32, and for
// a format without such blocks; UnsupportedModel for a row whose scales no power of two makes f16:
// bf16 holds it exactly.
void pack_row_blocks(WeightFormat format, const BlockMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to);

enum class ScaleType : std::uint32_t { f16 = 0, bf16 = 1, f32 = 2, e8m0 = 3 };

// One code a byte: the int8 of q8g32h, 0..15 of the others. A scale per row and 32 columns; the
// last group may be shorter.
struct CodeMatrix {
  const std::int8_t* codes;  // [rows][cols]
  const void* scales;        // [rows][ceil(cols / 32)]
  ScaleType scale_type;
  std::int64_t rows;
  std::int64_t cols;
};

// As above, of codes; bf16 and f32 scales get a power of two per row as e8m0 do. Where all blocks
// of a row but those of zeros have the same f32 scale, it is the row's scale, whatever its bits.
// Throws InvalidRequest for a code above 15 too, naming row and column.
void pack_row_blocks(WeightFormat format, const CodeMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to);

}  // namespace musespark

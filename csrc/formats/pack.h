// Packing of stored matrices into the formats of weights.h.
//
// The bytes are a function of the numbers alone: the same on every machine, instruction set and
// number of threads (float operations run per row in one order, without fma or libm; the vector
// versions of pack.inl are the same operations on 16 rows at once).
//
//   q8   block scale = largest magnitude of 64 columns / 127; q8g1024h of 1024
//   q6   per 32 columns a search of the scale for the least squared error, then int8 sub-scales
//        over blocks of 256 columns
//   q4   the same with the 16 levels and both signs, codes chosen among the final int8 levels
//   q8g32h            block scale = largest magnitude of 32 columns / 127
//   q4g32h, iq4g32h, mxfp4   per 32 columns the search of q4; any f16 may be a block scale
//
// Blocks that the format holds exactly (repack.h: holds_exactly) are repacked instead, and iq4_xs
// keeps its codes in iq4g32h, each scale rounded to f16.
//
// A row whose largest magnitude is below 1e-30 packs to zeros.
//
// With a PackGuide the squared errors that a search adds up are each times the column's importance;
// and errors are fed forward: with H = X^T X of the inputs x that the matrix is multiplied with,
// H = M M^T, M upper triangular, and factor[i][k] = M[i][k] / M[k][k], column k is rounded from
//
//     w[k] + sum over i < k of (w[i] - packed[i]) * factor[i][k]
//
// which is where sum |x . (w - packed)|^2 is least, given the columns before it. It is what GPTQ
// does by way of the inverse of H. Row scales come from the matrix itself, block scales from what
// is rounded when their block begins, sub-scales when their group begins.
#pragma once

#include <cstdint>

#include "formats/stored.h"
#include "formats/weights.h"

namespace musespark {

struct StoredMatrix {
  const std::uint8_t* data;
  StoredType type;
  std::int64_t rows;
  std::int64_t cols;       // a whole number of blocks
  std::int64_t row_bytes;  // from one row to the next
  bool quick = false;      // fewer trial scales: for numbers that have been quantized before
};

struct PackGuide {
  const float* importance = nullptr;  // [cols], finite and above zero; null: all alike
  const float* factor = nullptr;      // [cols][cols], finite; null: no feedback
};

// Packs row blocks [begin, end) of `from` to their places in `to`, the start of the whole packed
// matrix (weight_layout(...).bytes long). Calls on disjoint ranges may run at the same time. Takes
// about 100 bytes per column of memory (with feedback 250). A guide is for quantized formats.
// Throws InvalidRequest for a number that is not finite, naming its row and column.
void pack_row_blocks(WeightFormat format, const StoredMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to, const PackGuide& guide = {});

}  // namespace musespark

// Row operations of a vision tower: patches into rows, their places, rows into tokens.
#pragma once

#include <cstdint>
#include <span>

#include "ops/norm.h"
#include "ops/rope.h"

namespace musespark {

// Share of one row of the table of positions in a row of the tower.
struct PositionShare {
  std::int64_t entry;
  float weight;
};

// What rows are made of. Row r is embedded row patch[r], or the class token where that is negative,
// plus the sum of its shares of the table, ascending.
struct PatchPlaces {
  const float* embedded;  // [patches][ld]
  std::int64_t ld;
  const float* class_token;                 // [cols], null where no row asks for it
  std::span<const std::int64_t> patch;      // [rows]
  const float* table;                       // [entries][cols], null: no positions
  std::span<const PositionShare> share;     // of all rows, one after the other
  std::span<const std::int64_t> share_end;  // [rows]
};

// x[r] = embed_norm(row r), then out[r] = next(x[r]) as add_norm writes it. Needs scratch of
// residual.cols floats per thread.
void place_patches(Jobs& jobs, const KernelTable& kernels, const PatchPlaces& from,
                   const Residual& residual, const Norm& embed_norm, const Norm& next,
                   const Rows& out);

// Where rows are, and how that turns their heads: the first quarter of a head's pairs by `outer`,
// the second by `inner`, pairs (i, i + D / 2).
struct AxialPlaces {
  const RopeTable* rope;  // of one axis, D / 4 frequencies; extended beyond every place
  std::span<const std::int32_t> outer, inner;  // [rows]
  std::int64_t first;                          // added to both
};

// Rotates `heads` heads of head_dim floats (at most 512) at the beginning of each row of x.
void axial_rope(Jobs& jobs, const KernelTable& kernels, const AxialPlaces& places,
                std::int64_t heads, std::int64_t head_dim, float* x, std::int64_t ldx);

// How rows become one token: side by side, side by side with channels outermost, or their mean.
enum class Merge : std::uint8_t { concat, interleave, average };

struct TokenRows {
  const float* x;  // [rows][ldx], cols of each
  std::int64_t ldx, cols;
  std::span<const std::int64_t> members;  // `each` rows of every token
  std::int64_t each;
  Merge merge;
  Norm norm;         // of a row
  Norm merged_norm;  // of a token
};

// Floats of scratch per thread.
std::int64_t merge_scratch_floats(std::int64_t cols, std::int64_t each);

// out[t] = merged_norm(merge of norm(x[members of t])), floats (always) and quantized as add_norm.
void merge_rows(Jobs& jobs, const KernelTable& kernels, const TokenRows& from, const Rows& out);

}  // namespace musespark

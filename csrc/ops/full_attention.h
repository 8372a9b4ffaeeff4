// Attention without a cache: every row of a text sees every row of it. What encoders run.
//
// Scores and sums are products of the float matmul kernel over keys and values packed on the way,
// so the bits are the same on every instruction set, and a row's depend on its text alone.
#pragma once

#include <cstdint>
#include <span>

#include "ops/linear.h"

namespace musespark {

struct FullAttentionShape {
  std::int64_t heads, kv_heads, head_dim;
  float scale;  // of the scores
};

// Rows first .. first + count - 1 of the batch are one text.
struct TextSpan {
  std::int64_t first, count;
};

// Bytes of scratch per thread for texts of up to `longest` rows.
std::int64_t full_attention_scratch_bytes(const FullAttentionShape& shape, std::int64_t longest);

// qkv [rows][ld]: query heads, key heads, value heads, head_dim floats each.
// out.x row r = its heads side by side, heads * head_dim columns; quantized where out.q is there.
// Two jobs.
void full_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                    std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                    const Rows& out);

// Rows of heads lie pages apart, where no hardware looks ahead: while the head of one row is read,
// that of a row kHeadsAhead further on is fetched.
inline constexpr std::int64_t kHeadsAhead = 8;
inline void fetch_head(const float* head, std::int64_t ld, std::int64_t dim) {
  constexpr std::int64_t kLineFloats = 16;
  const float* ahead = head + kHeadsAhead * ld;
  for (std::int64_t i = 0; i < dim; i += kLineFloats) __builtin_prefetch(ahead + i);
}

}  // namespace musespark

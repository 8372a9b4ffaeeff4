// Attention without a cache in 8 bits (kernels/attention/whole.h): every row of a text sees every
// row of it, the same bits on every instruction set, and a row's bits depend on its text alone.
#pragma once

#include <cstdint>
#include <span>

#include "ops/full_attention.h"

namespace musespark {

// Bytes of packed keys and values of these texts, and of scratch per thread for texts of up to
// `longest` rows.
std::int64_t int8_attention_bytes(const FullAttentionShape& shape, std::span<const TextSpan> texts);
std::int64_t int8_attention_scratch_bytes(const FullAttentionShape& shape, std::int64_t longest);

// As full_attention (ops/full_attention.h); `packed`: room for int8_attention_bytes, 64-byte
// aligned. Three jobs. head_dim is at most 512.
void int8_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                    std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                    std::uint8_t* packed, const Rows& out);

}  // namespace musespark

// Attention without a cache over keys and values in 8 bits: every row of a text sees every row of
// it. Keys and values become sealed pages of format kv8 (formats/kv_page.h) on the way, and the
// kernels are those of the cache: the same integers on every instruction set, and a row's bits
// depend on its text alone. Slots beyond a text's end hold its last row again, which nobody sees.
#pragma once

#include <cstdint>
#include <span>

#include "ops/full_attention.h"

namespace musespark {

// Bytes of pages for these texts, and of scratch per thread.
std::int64_t sealed_attention_bytes(const FullAttentionShape& shape,
                                    std::span<const TextSpan> texts);
std::int64_t sealed_attention_scratch_bytes(const FullAttentionShape& shape);

// As full_attention (ops/full_attention.h); `pages`: room for sealed_attention_bytes, 64-byte
// aligned. Three jobs. head_dim is at most 512.
void sealed_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                      std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                      std::uint8_t* pages, const Rows& out);

}  // namespace musespark

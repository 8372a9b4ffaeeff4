// A sealed page as the tiles read it.
#pragma once

#include <cstdint>

#include "kernels/attention/rows.inl"
#include "kernels/attention/unpack.inl"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

// 8-bit codes of a page's keys or values.
const std::uint8_t* key_codes(RowBlock* block, const SealedLayout& at, std::int64_t p) {
  const std::uint8_t* page = block->args->sealed[p];
  if (!has_4bit_keys(block->args->formats[p])) return page + at.k_codes;
  unpack_keys(page, at, block->dim, block->tile, &block->fetch);
  return block->tile;
}

const std::uint8_t* value_codes(RowBlock* block, const SealedLayout& at, std::int64_t p) {
  const std::uint8_t* page = block->args->sealed[p];
  if (!has_4bit_values(block->args->formats[p])) return page + at.v_codes;
  unpack_values(page, at, block->dim, block->tile, &block->fetch);
  return block->tile;
}

void load_scales(const RowBlock& block, std::int64_t begin, std::int64_t end) {
  for (std::int64_t p = begin; p < end; ++p) {
    const std::uint8_t* page = block.args->sealed[p];
    if (!page) continue;  // no row reads it
    const SealedLayout at = sealed_layout(block.args->formats[p], block.dim);
    for (std::int64_t i = p * kPageTokens; i < (p + 1) * kPageTokens; i += 16) {
      const std::int64_t offset = 2 * (i % kPageTokens);
      vstore(block.key_scale + i, vload_f16(page + at.k_scale + offset));
      vstore(block.value_scale + i, vabs(vload_f16(page + at.v_scale + offset)));
    }
  }
}

}  // namespace
}  // namespace musespark

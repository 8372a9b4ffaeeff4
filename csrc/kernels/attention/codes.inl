// The codes of a sealed page as the tiles read them, and what is fetched while they do.
#pragma once

#include <cstdint>

#include "kernels/attention/rows.inl"
#include "kernels/attention/unpack.inl"

namespace musespark {
namespace {

// 8-bit codes of a page's keys or values, and what the first tile of rows fetches meanwhile: the
// codes that are read next, `fetch_step` bytes for each vector of these. The hardware does not
// prefetch from page to page.
struct Codes {
  const std::uint8_t* data;
  const std::uint8_t* fetch;
  std::int64_t fetch_step;
};

// Keys are read page by page, then values, then the keys of the next chunk.
void fetch_next(const RowBlock& block, std::int64_t p, bool keys, Codes* codes) {
  const AttendChunkArgs& a = *block.args;
  const bool last = p + 1 == block.sealed_pages;
  const bool next_keys = keys != last;
  const std::int64_t to = !last ? p + 1 : keys ? block.first_page : kPagesPerChunk;
  const std::uint8_t* page = to < kPagesPerChunk ? a.sealed[to] : a.next ? a.next[0] : nullptr;
  codes->fetch = a.sealed[p];
  codes->fetch_step = 0;
  if (!page) return;
  const SealedLayout at = sealed_layout(a.formats[to], block.dim);
  codes->fetch = page + (next_keys ? at.k_codes : at.v_codes);
  const bool four = next_keys ? has_4bit_keys(a.formats[to]) : has_4bit_values(a.formats[to]);
  codes->fetch_step = four ? 32 : 64;
}

Codes key_codes(const RowBlock& block, const SealedLayout& at, std::int64_t p) {
  Codes codes = {block.args->sealed[p] + at.k_codes, nullptr, 0};
  fetch_next(block, p, true, &codes);
  if (has_4bit_keys(block.args->formats[p])) {
    unpack_keys(block.args->sealed[p], at, block.dim, block.tile);
    codes.data = block.tile;
  }
  return codes;
}

Codes value_codes(const RowBlock& block, const SealedLayout& at, std::int64_t p) {
  Codes codes = {block.args->sealed[p] + at.v_codes, nullptr, 0};
  fetch_next(block, p, false, &codes);
  if (has_4bit_values(block.args->formats[p])) {
    unpack_values(block.args->sealed[p], at, block.dim, block.tile);
    codes.data = block.tile;
  }
  return codes;
}

// A tile's part of the fetch: `vectors` are read before it.
MS_INLINE Panel<std::uint8_t> code_panel(const Codes& codes, std::int64_t row, std::int64_t offset,
                                         std::int64_t step_stride, std::int64_t block_stride,
                                         std::int64_t steps, std::int64_t vectors) {
  const std::int64_t fetch_step = row == 0 ? codes.fetch_step : 0;
  return {codes.data + offset,
          step_stride,
          block_stride,
          steps,
          row == 0 ? codes.fetch + vectors * fetch_step : codes.data,
          fetch_step};
}

// The small parts of the next chunk's pages: means, scales and steps.
void fetch_tails(const RowBlock& block, std::int64_t p) {
  const std::uint8_t* page = block.args->next ? block.args->next[p] : nullptr;
  if (!page) return;
  const SealedLayout at = sealed_layout(block.args->formats[kPagesPerChunk + p], block.dim);
  for (std::int64_t i = at.k_steps; i < at.bytes; i += 64) __builtin_prefetch(page + i);
}

}  // namespace
}  // namespace musespark

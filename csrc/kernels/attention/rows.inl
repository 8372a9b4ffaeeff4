// What attend.inl knows of a block of query rows: visible positions, where each page is read from,
// and where its parts lie in scratch.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/fetch.inl"
#include "kernels/attention/tiles.inl"

namespace musespark {
namespace {

// P of one row: the low bytes of each page, then the high bytes of page 0.
constexpr std::int64_t kWeightStride = kMergeChunk + kPageTokens;

// What the tiles of sealed keys know of each query row.
struct QueryRow {
  float scale;        // of the quantized query
  std::int32_t bias;  // kKeyBias * sum of the quantized query
};

// Products whose sums AMX has stored: rows [row, row + rows) times four vectors of page `page`,
// those of values from vector `first` on.
struct TileStep {
  std::int64_t row = 0, rows = 0;  // 0: none
  std::int64_t page = 0, first = 0;
  bool two_planes = false;
};

enum class Source { none, open, sealed };

// One block of query rows and where its parts lie in scratch. Positions count from the chunk's
// first.
struct RowBlock {
  const AttendChunkArgs* args;
  std::int64_t row;   // of the call
  std::int64_t rows;  // 1..kAttendRowBlock
  std::int64_t dim;
  const float* q;
  float* o;
  std::int64_t first[kAttendRowBlock];  // visible positions; first > last: none
  std::int64_t last[kAttendRowBlock];
  std::int64_t sealed_end[kAttendRowBlock];  // pages below are read sealed
  std::int64_t first_page;                   // that some row sees
  std::int64_t sealed_pages;                 // end of the pages that some row reads sealed
  std::int64_t whole_begin, whole_end;       // pages that every row reads sealed
  QueryRow sealed[kAttendRowBlock];
  float* score;         // [rows][512]: scores, then exp(s - m), sealed: times the value's scale
  float* mean_product;  // [rows][16], page p of the chunk in lane p
  float* step;          // [rows][16], of P, page p in lane p
  std::int32_t*
      value_bias;         // [rows][16] kValueBias * sum of P, page p in lane p; where it is not 0
  dot_weight* query;      // [rows][dim]
  dot_weight* weight;     // [rows][kWeightStride]
  float* page;            // [64 * dim] keys or values of an open page as f32
  float* mean;            // [dim][16], page p of the chunk in lane p
  float* key_scale;       // [512] of sealed pages
  float* value_scale;     // [512] their magnitudes
  std::uint8_t* tile;     // [64 * dim] keys or values of 4 bits as 8-bit codes
  std::int32_t* product;  // [2][4][16][16] sums, of low and high bytes, of `pending` (AMX)
  TileStep pending;
  Fetch fetch;

  bool all_sealed(std::int64_t p) const { return p >= whole_begin && p < whole_end; }
  Source source(std::int64_t r, std::int64_t p) const {
    const std::int64_t begin = p * kPageTokens;
    if (first[r] > last[r] || last[r] < begin || first[r] >= begin + kPageTokens) {
      return Source::none;
    }
    return p < sealed_end[r] ? Source::sealed : Source::open;
  }
};

// f(begin, end) for each run of consecutive rows that read page p from `wanted`.
template <class F>
MS_INLINE void each_run(const RowBlock& block, std::int64_t p, Source wanted, F f) {
  if (block.all_sealed(p)) {
    if (wanted == Source::sealed) f(0, block.rows);
    return;
  }
  for (std::int64_t r = 0; r < block.rows;) {
    if (block.source(r, p) != wanted) {
      ++r;
      continue;
    }
    const std::int64_t begin = r;
    while (r < block.rows && block.source(r, p) == wanted) ++r;
    f(begin, r);
  }
}

// The slots of page p that some row of [begin, end) that reads it from `open` sees.
struct Slots {
  std::int64_t first = kPageTokens;
  std::int64_t last = -1;
};

MS_INLINE std::int64_t first_slot(const RowBlock& block, std::int64_t r, std::int64_t p) {
  const std::int64_t slot = block.first[r] - p * kPageTokens;
  return slot < 0 ? 0 : slot;
}
MS_INLINE std::int64_t last_slot(const RowBlock& block, std::int64_t r, std::int64_t p) {
  const std::int64_t slot = block.last[r] - p * kPageTokens;
  return slot < kPageTokens - 1 ? slot : kPageTokens - 1;
}

Slots open_slots(const RowBlock& block, std::int64_t p, std::int64_t begin, std::int64_t end) {
  Slots slots;
  for (std::int64_t r = begin; r < end; ++r) {
    if (block.source(r, p) != Source::open) continue;
    const std::int64_t low = first_slot(block, r, p);
    const std::int64_t high = last_slot(block, r, p);
    if (low < slots.first) slots.first = low;
    if (high > slots.last) slots.last = high;
  }
  return slots;
}

// Takes `bytes` from scratch, keeping 64-byte alignment.
template <class T>
T* take(std::uint8_t** scratch, std::int64_t count) {
  T* at = reinterpret_cast<T*>(*scratch);
  *scratch += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
  return at;
}

void lay_out(RowBlock* block, void* scratch) {
  auto* at = static_cast<std::uint8_t*>(scratch);
  block->score = take<float>(&at, block->rows * kMergeChunk);
  block->mean_product = take<float>(&at, block->rows * 16);
  block->step = take<float>(&at, block->rows * 16);
  block->value_bias = take<std::int32_t>(&at, block->rows * 16);
  block->query = take<dot_weight>(&at, block->rows * block->dim);
  block->weight = take<dot_weight>(&at, block->rows * kWeightStride);
  block->page = take<float>(&at, kPageTokens * block->dim);
  block->mean = take<float>(&at, 16 * block->dim);
  block->key_scale = take<float>(&at, kMergeChunk);
  block->value_scale = take<float>(&at, kMergeChunk);
  block->tile = take<std::uint8_t>(&at, kPageTokens * block->dim);
  block->product = take<std::int32_t>(&at, 2 * 4 * 256);
}

// Ranges of the rows and of the pages they touch; false if no row sees anything.
bool find_ranges(RowBlock* block, Slots* pages) {
  const AttendChunkArgs& a = *block->args;
  const std::int64_t base = a.chunk * kMergeChunk;
  *pages = {kPagesPerChunk, -1};
  block->sealed_pages = 0;
  block->whole_begin = 0;
  block->whole_end = kPagesPerChunk;
  for (std::int64_t r = 0; r < block->rows; ++r) {
    const std::int64_t i = block->row + r;
    block->first[r] = (a.lo[i] > base ? a.lo[i] : base) - base;
    block->last[r] = (a.hi[i] < base + kMergeChunk - 1 ? a.hi[i] : base + kMergeChunk - 1) - base;
    const std::int64_t own = a.pos[i] / kPageTokens - a.chunk * kPagesPerChunk;
    block->sealed_end[r] = a.sealed ? own : 0;
    a.partial[i] = {-__builtin_inff(), 0.0f};
    if (block->first[r] > block->last[r]) {
      block->whole_end = 0;
      continue;
    }
    const std::int64_t low = block->first[r] / kPageTokens;
    const std::int64_t high = block->last[r] / kPageTokens;
    if (low < pages->first) pages->first = low;
    if (high > pages->last) pages->last = high;
    const std::int64_t end = block->sealed_end[r] < high + 1 ? block->sealed_end[r] : high + 1;
    if (low < end && end > block->sealed_pages) block->sealed_pages = end;
    if (low > block->whole_begin) block->whole_begin = low;
    if (end < block->whole_end) block->whole_end = end;
  }
  block->first_page = pages->first;
  return pages->last >= 0;
}

}  // namespace
}  // namespace musespark

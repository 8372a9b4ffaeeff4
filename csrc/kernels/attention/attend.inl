// attend_chunk over the vector vocabulary and the products of sealed pages (products_dot.inl or
// products_amx.inl, included before); attention/scalar.cc says what it computes.
//
// kAttendRowBlock rows at a time: the scores of all pages (pages outer, so that a page's keys stay
// in L1 for every row tile), softmax row by row, then the values of all pages.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/codes.inl"
#include "kernels/attention/rows.inl"
#include "kernels/attention/softmax.inl"
#include "kernels/attention/tiles.inl"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

// Queries as int8 codes with one scale a row.
void prepare_queries(RowBlock* block) {
  for (std::int64_t r = 0; r < block->rows; ++r) {
    const float* q = block->q + r * block->args->ldq;
    vi largest = iset(0);
    for (std::int64_t d = 0; d < block->dim; d += 16) {
      largest = imax(largest, iand(vbits(vload(q + d)), iset(0x7fffffff)));
    }
    const std::int32_t bits = itree_max(largest);
    const float amax = __builtin_bit_cast(float, bits);
    const bool finite = bits < 0x7f800000;
    const bool zero = !finite || amax < kTiny;
    block->sealed[r].scale = !finite ? __builtin_nanf("") : zero ? 0.0f : amax / 127.0f;
    const vf inverse = vset(127.0f / amax);
    vi sum = iset(0);
    for (std::int64_t d = 0; d < block->dim; d += 16) {
      const vf x = vmul(vload(q + d), inverse);
      const vi code = zero ? iset(0) : vround(vmax(vset(-127.0f), vmin(vset(127.0f), x)));
      sum = iadd(sum, code);
      store_weights(block->query + r * block->dim + d, code);
    }
    block->sealed[r].bias = kKeyBias * sum_of(sum);
  }
}

// mean_product[row][page] = q . mean for sealed pages [begin, end): lane = page.
void multiply_means(const RowBlock& block, std::int64_t begin, std::int64_t end) {
  static constexpr std::uint8_t kNoPage[2 * kMostHeadDim] = {};
  const std::uint8_t* mean[kPagesPerChunk];
  for (std::int64_t p = 0; p < kPagesPerChunk; ++p) {
    const std::uint8_t* page = p >= begin && p < end ? block.args->sealed[p] : nullptr;
    mean[p] = page ? page + sealed_layout(block.args->formats[p], block.dim).k_mean : kNoPage;
  }
  for (std::int64_t d = 0; d < block.dim; d += 16) vcolumns_f16(mean, 2 * d, block.mean + 16 * d);
  const Panel<float> panel = {block.mean, 16, 16, block.dim};
  float_tiles(panel, 1, block.rows, block.q, block.args->ldq, block.mean_product, 16, false);
}

void score_sealed(RowBlock* block, std::int64_t p) {
  const SealedLayout at = sealed_layout(block->args->formats[p], block->dim);
  const std::uint8_t* codes = nullptr;
  each_run(*block, p, Source::sealed, [&](std::int64_t begin, std::int64_t end) {
    if (!codes) codes = key_codes(block, at, p);
    score_rows(block, codes, p, begin, end);
  });
}

// The values of an open page, at least `slots` of them, as f32 in the page's own layout.
const float* open_values(const RowBlock& block, std::int64_t p, Slots slots) {
  const std::uint8_t* page = block.args->open[p] + open_keys_bytes(block.dim);
  if (block.args->formats[p] == KvFormat::f32) return reinterpret_cast<const float*>(page);
  for (std::int64_t i = slots.first * block.dim; i < (slots.last + 1) * block.dim; i += 16) {
    vstore(block.page + i, vload_f16(page + 2 * i));
  }
  return block.page;
}

void score_open(const RowBlock& block, std::int64_t p) {
  if (block.all_sealed(p)) return;
  const Slots all = open_slots(block, p, 0, block.rows);
  if (all.last < 0) return;
  const auto* keys = reinterpret_cast<const float*>(block.args->open[p]);
  each_run(block, p, Source::open, [&](std::int64_t begin, std::int64_t end) {
    const Slots slots = open_slots(block, p, begin, end);
    const std::int64_t b = slots.first / 16;
    const Panel<float> panel = {keys + b * 16 * block.dim, 16, 16 * block.dim, block.dim};
    float_tiles(panel, slots.last / 16 + 1 - b, end - begin, block.q + begin * block.args->ldq,
                block.args->ldq, block.score + begin * kMergeChunk + p * kPageTokens + 16 * b,
                kMergeChunk, false);
  });
}

void add_sealed(RowBlock* block, std::int64_t p) {
  const SealedLayout at = sealed_layout(block->args->formats[p], block->dim);
  const std::uint8_t* codes = nullptr;
  each_run(*block, p, Source::sealed, [&](std::int64_t begin, std::int64_t end) {
    if (!codes) codes = value_codes(block, at, p);
    add_rows(block, codes, p, begin, end);
  });
}

void add_open_rows(const RowBlock& block, std::int64_t p, const float* values, std::int64_t r,
                   std::int64_t rows, std::int64_t first, std::int64_t last) {
  if (first > last) return;
  const Panel<float> panel = {values + first * block.dim, block.dim, 16, last + 1 - first};
  float_tiles(panel, block.dim / 16, rows, block.score + r * kMergeChunk + p * kPageTokens + first,
              kMergeChunk, block.o + r * block.dim, block.dim, true);
}

// A tile takes the positions that all its rows see; what single rows see besides comes before and
// after, so that each row's sum ascends and a slot it does not see (a stale NaN) is never touched.
void add_open(RowBlock* in, std::int64_t p) {
  const RowBlock& block = *in;
  if (block.all_sealed(p)) return;
  const Slots all = open_slots(block, p, 0, block.rows);
  if (all.last < 0) return;
  finish_values(in);  // o ascends by page
  const float* values = open_values(block, p, all);
  each_run(block, p, Source::open, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; r += kTileRows) {
      const std::int64_t stop = r + kTileRows < end ? r + kTileRows : end;
      std::int64_t low = 0;
      std::int64_t high = kPageTokens - 1;
      for (std::int64_t i = r; i < stop; ++i) {
        if (first_slot(block, i, p) > low) low = first_slot(block, i, p);
        if (last_slot(block, i, p) < high) high = last_slot(block, i, p);
      }
      if (low > high) {  // nothing in common: each row by itself
        for (std::int64_t i = r; i < stop; ++i) {
          add_open_rows(block, p, values, i, 1, first_slot(block, i, p), last_slot(block, i, p));
        }
        continue;
      }
      for (std::int64_t i = r; i < stop; ++i) {
        add_open_rows(block, p, values, i, 1, first_slot(block, i, p), low - 1);
      }
      add_open_rows(block, p, values, r, stop - r, low, high);
      for (std::int64_t i = r; i < stop; ++i) {
        add_open_rows(block, p, values, i, 1, high + 1, last_slot(block, i, p));
      }
    }
  });
}

void attend_block(RowBlock* block) {
  const AttendChunkArgs& a = *block->args;
  for (std::int64_t i = 0; i < block->rows * block->dim; i += 16) vstore(block->o + i, vset(0.0f));
  Slots pages;
  if (!find_ranges(block, &pages)) return;
  if (block->sealed_pages > block->first_page) {
    if (block->row == 0) {
      block->fetch.start(&a, block->first_page, block->sealed_pages, block->rows);
    }
    block->fetch.lines(block->fetch.prepare_lines);
    prepare_queries(block);
    block->fetch.lines(block->fetch.prepare_lines);
    load_scales(*block, block->first_page, block->sealed_pages);
    block->fetch.lines(block->fetch.prepare_lines);
    multiply_means(*block, block->first_page, block->sealed_pages);
  }
  for (std::int64_t p = pages.first; p <= pages.last; ++p) {
    score_sealed(block, p);
    score_open(*block, p);
  }
  finish_scores(block);
  for (std::int64_t r = 0; r < block->rows; ++r) {
    if (block->first[r] <= block->last[r]) a.partial[block->row + r] = softmax(block, r);
  }
  for (std::int64_t p = pages.first; p <= pages.last; ++p) {
    add_sealed(block, p);
    add_open(block, p);
  }
  finish_values(block);
  if (block->fetch.args) block->fetch.rest();
  for (std::int64_t i = 0; i < block->rows * block->dim; i += 16) {
    vstore(block->o + i, vcanonical(vload(block->o + i)));
  }
}

void attend_rows(const AttendChunkArgs* args) {
  start_products(*args);
  for (std::int64_t row = 0; row < args->rows; row += kAttendRowBlock) {
    RowBlock block;
    block.args = args;
    block.row = row;
    block.rows = args->rows - row < kAttendRowBlock ? args->rows - row : kAttendRowBlock;
    block.dim = args->head_dim;
    block.q = args->q + row * args->ldq;
    block.o = args->o + row * args->head_dim;
    lay_out(&block, args->scratch);
    attend_block(&block);
  }
  end_products(*args);
}

}  // namespace
}  // namespace musespark

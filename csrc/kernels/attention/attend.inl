// attend_chunk over the vector vocabulary and the tiles; attention/scalar.cc says what it computes.
//
// kAttendRowBlock rows at a time: the scores of all pages (pages outer, so that a page's keys stay
// in L1 for every row tile), softmax row by row, then the values of all pages.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/codes.inl"
#include "kernels/attention/rows.inl"
#include "kernels/attention/tiles.inl"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

constexpr float kTiny = 1e-30f;

std::int32_t sum_of(vi x) {
  std::int32_t lanes[16];
  istore(lanes, x);
  std::int32_t sum = 0;
  for (std::int32_t lane : lanes) sum += lane;
  return sum;
}

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
  for (std::int64_t i = 0; i < block.dim; ++i) vstore(block.mean + 16 * i, vset(0.0f));
  for (std::int64_t p = begin; p < end; ++p) {
    const std::uint8_t* page = block.args->sealed[p];
    if (!page) continue;  // no row reads it
    const SealedLayout at = sealed_layout(block.args->formats[p], block.dim);
    for (std::int64_t d = 0; d < block.dim; d += 16) {
      float mean[16];
      vstore(mean, vload_f16(page + at.k_mean + 2 * d));
      for (std::int64_t i = 0; i < 16; ++i) block.mean[(d + i) * 16 + p] = mean[i];
    }
  }
  const Panel<float> panel = {block.mean, 16, 16, block.dim};
  float_tiles(panel, 1, block.rows, block.q, block.args->ldq, block.mean_product, 16, false);
}

void score_rows(const RowBlock& block, const SealedLayout& at, const Codes& codes, std::int64_t p,
                std::int64_t begin, std::int64_t end) {
  const std::uint8_t* page = block.args->sealed[p];
  float key_scale[kPageTokens];
  for (int b = 0; b < 4; ++b) vstore(key_scale + 16 * b, vload_f16(page + at.k_scale + 32 * b));
  each_tile(
      end - begin, 4, [&](std::int64_t i, std::int64_t height, std::int64_t b, std::int64_t width) {
        const std::int64_t r = begin + i;
        const auto panel = code_panel(codes, i, b * 16 * block.dim, 64, 16 * block.dim,
                                      block.dim / 4, b * block.dim / 4);
        with_count<kTileRows>(height, [&](auto h) {
          with_count<kTileBlocks>(width, [&](auto n) {
            key_tile<h.value, n.value>(panel, block.query + r * block.dim, block.dim,
                                       block.sealed + r, key_scale + 16 * b,
                                       block.mean_product + 16 * r + p,
                                       block.score + r * kMergeChunk + p * kPageTokens + 16 * b);
          });
        });
      });
}

void score_sealed(const RowBlock& block, std::int64_t p) {
  const SealedLayout at = sealed_layout(block.args->formats[p], block.dim);
  Codes codes = {nullptr, nullptr, 0};
  each_run(block, p, Source::sealed, [&](std::int64_t begin, std::int64_t end) {
    if (!codes.data) codes = key_codes(block, at, p);
    score_rows(block, at, codes, p, begin, end);
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

// f(j, edge) for the vectors of 16 scores from first to last; edge: not all of them are inside. The
// inner ones are a loop without a condition.
template <class F>
MS_INLINE void each_vector(std::int64_t first, std::int64_t last, F f) {
  std::int64_t j = first / 16 * 16;
  if (j < first) {
    f(j, Count<1>{});
    j += 16;
  }
  for (; j + 15 <= last; j += 16) f(j, Count<0>{});
  if (j <= last) f(j, Count<1>{});
}

// Scores [first, last] of one row -> exp(s - m), zero around them up to the vectors' ends.
AttentionPartial softmax(float* score, std::int64_t first, std::int64_t last, float softcap) {
  const vf lowest = vset(-__builtin_inff());
  if (softcap > 0.0f) {
    for (std::int64_t j = first / 16 * 16; j <= last; j += 16) {
      vstore(score + j, vmul(vset(softcap), vtanh(vdiv(vload(score + j), vset(softcap)))));
    }
  }
  vf lanes = lowest;
  each_vector(first, last, [&](std::int64_t j, auto edge) MS_LAMBDA {
    vf s = vload(score + j);
    if constexpr (edge.value) s = vselect(vrange(first - j, last + 1 - j), s, lowest);
    lanes = vmax(s, lanes);
  });
  const float m = vtree_max(lanes);
  const vf top = vset(m);
  vf total = vset(0.0f);
  each_vector(first, last, [&](std::int64_t j, auto edge) MS_LAMBDA {
    vf e = vexp_below_89(vsub(vload(score + j), top));
    if constexpr (edge.value) e = vselect(vrange(first - j, last + 1 - j), e, vset(0.0f));
    vstore(score + j, e);
    total = vadd(total, e);
  });
  return {m, canonical(vtree_sum(total))};
}

// One row's P of one sealed page: 8-bit steps, low plane and (page 0) high plane.
void quantize_weights(const float* p, const float* value_scale, std::int64_t first,
                      std::int64_t last, bool two_planes, dot_weight* weight, SealedRow* row) {
  vf w[4];
  vi largest = iset(0);
  for (int b = 0; b < 4; ++b) {
    w[b] = vmul(vload(p + 16 * b), vload(value_scale + 16 * b));
    if (first > 16 * b || last < 16 * b + 15) {
      w[b] = vselect(vrange(first - 16 * b, last + 1 - 16 * b), w[b], vset(0.0f));
    }
    largest = imax(largest, iand(vbits(w[b]), iset(0x7fffffff)));
  }
  const std::int32_t bits = itree_max(largest);
  const float wmax = __builtin_bit_cast(float, bits);
  const float steps = two_planes ? 65535.0f : 255.0f;
  const bool finite = bits < 0x7f800000;
  const bool zero = !finite || wmax < kTiny;
  const float inverse = zero ? 0.0f : steps / wmax;
  vi plane_sum[2] = {iset(0), iset(0)};
  for (int b = 0; b < 4; ++b) {
    const vi code = zero ? iset(0) : vround(vmul(w[b], vset(inverse)));
    const vi low = two_planes ? iand(code, iset(255)) : code;
    store_weights(weight + 16 * b, low);
    plane_sum[0] = iadd(plane_sum[0], low);
    if (!two_planes) continue;
    store_weights(weight + kPageTokens + 16 * b, ishr<8>(code));
    plane_sum[1] = iadd(plane_sum[1], ishr<8>(code));
  }
  if constexpr (kValueBias != 0) {
    for (int i = 0; i < 2; ++i) row->value_bias[i] = kValueBias * sum_of(plane_sum[i]);
  }
  row->step = !finite ? __builtin_nanf("") : zero ? 0.0f : wmax / steps;
}

void add_rows(RowBlock* block, const SealedLayout& at, const Codes& codes, std::int64_t p,
              std::int64_t begin, std::int64_t end) {
  const std::uint8_t* page = block->args->sealed[p];
  const bool two_planes = block->args->chunk == 0 && p == 0;
  float value_scale[kPageTokens];
  for (int b = 0; b < 4; ++b) {
    vstore(value_scale + 16 * b, vabs(vload_f16(page + at.v_scale + 32 * b)));
  }
  for (std::int64_t r = begin; r < end; ++r) {
    quantize_weights(block->score + r * kMergeChunk + p * kPageTokens, value_scale,
                     first_slot(*block, r, p), last_slot(*block, r, p), two_planes,
                     block->weight + r * kPlaneStride, block->sealed + r);
  }
  each_tile(end - begin, block->dim / 16,
            [&](std::int64_t i, std::int64_t height, std::int64_t b, std::int64_t width) {
              const std::int64_t r = begin + i;
              const auto panel =
                  code_panel(codes, i, 64 * b, 4 * block->dim, 64, kPageTokens / 4, 16 * b);
              const dot_weight* w = block->weight + r * kPlaneStride;
              float* o = block->o + r * block->dim + 16 * b;
              with_count<kTileRows>(height, [&](auto h) {
                with_count<kTileBlocks>(width, [&](auto n) {
                  if (two_planes) {
                    value_tile<h.value, n.value, 2>(panel, w, kPlaneStride, block->sealed + r, o,
                                                    block->dim);
                  } else {
                    value_tile<h.value, n.value, 1>(panel, w, kPlaneStride, block->sealed + r, o,
                                                    block->dim);
                  }
                });
              });
            });
}

void add_sealed(RowBlock* block, std::int64_t p) {
  const SealedLayout at = sealed_layout(block->args->formats[p], block->dim);
  Codes codes = {nullptr, nullptr, 0};
  each_run(*block, p, Source::sealed, [&](std::int64_t begin, std::int64_t end) {
    if (!codes.data) {
      codes = value_codes(*block, at, p);
      fetch_tails(*block, p);
    }
    add_rows(block, at, codes, p, begin, end);
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
void add_open(const RowBlock& block, std::int64_t p) {
  const Slots all = open_slots(block, p, 0, block.rows);
  if (all.last < 0) return;
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
    prepare_queries(block);
    multiply_means(*block, block->first_page, block->sealed_pages);
  }
  for (std::int64_t p = pages.first; p <= pages.last; ++p) {
    score_sealed(*block, p);
    score_open(*block, p);
  }
  for (std::int64_t r = 0; r < block->rows; ++r) {
    if (block->first[r] > block->last[r]) continue;
    a.partial[block->row + r] =
        softmax(block->score + r * kMergeChunk, block->first[r], block->last[r], a.softcap);
  }
  for (std::int64_t p = pages.first; p <= pages.last; ++p) {
    add_sealed(block, p);
    add_open(*block, p);
  }
  for (std::int64_t i = 0; i < block->rows * block->dim; i += 16) {
    vstore(block->o + i, vcanonical(vload(block->o + i)));
  }
}

void attend_rows(const AttendChunkArgs* args) {
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
}

}  // namespace
}  // namespace musespark

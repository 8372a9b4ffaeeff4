// One row's scores of a chunk -> exp(s - m), their sum, and P of its sealed pages in 8 bits, over
// the vector vocabulary.
#pragma once

#include <cstdint>

#include "kernels/attention/rows.inl"
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

// The largest of scores [first, last], which the soft cap is applied to before; four vectors at a
// time, for any order gives the same.
float largest_score(float* score, std::int64_t first, std::int64_t last, float softcap) {
  if (softcap > 0.0f) {
    for (std::int64_t j = first / 16 * 16; j <= last; j += 16) {
      vstore(score + j, vmul(vset(softcap), vtanh(vdiv(vload(score + j), vset(softcap)))));
    }
  }
  const vf lowest = vset(-__builtin_inff());
  vf lanes[4] = {lowest, lowest, lowest, lowest};
  std::int64_t j = first / kPageTokens * kPageTokens;
  for (; j <= last; j += kPageTokens) {
    const bool whole = first <= j && j + kPageTokens - 1 <= last;
    unroll<4>([&](auto b) MS_LAMBDA {
      vf s = vload(score + j + 16 * b);
      if (!whole) s = vselect(vrange(first - j - 16 * b, last + 1 - j - 16 * b), s, lowest);
      lanes[b] = vmax(s, lanes[b]);
    });
  }
  return vtree_max(vmax(vmax(lanes[0], lanes[1]), vmax(lanes[2], lanes[3]))) + 0.0f;
}

// A page's scores become exp(s - top), zero outside [first, last], which is counted from the page's
// first; in a sealed page times value_scale. The sums go to *total, the largest lanes are returned
// (as numbers without sign: a NaN is above all else).
template <bool kSealed, bool kEdge>
MS_INLINE vi exp_page(float* score, const float* value_scale, vf top, std::int64_t first,
                      std::int64_t last, vf* total) {
  vi largest = iset(0);
  for (std::int64_t j = 0; j < kPageTokens; j += 16) {
    vf e = vexp_below_89(vsub(vload(score + j), top));
    const vm inside = vrange(first - j, last + 1 - j);
    if constexpr (kEdge) e = vselect(inside, e, vset(0.0f));
    *total = vadd(*total, e);
    if constexpr (kSealed) {
      e = vmul(e, vload(value_scale + j));
      if constexpr (kEdge) e = vselect(inside, e, vset(0.0f));
      largest = iumax(largest, vbits(e));
    }
    vstore(score + j, e);
  }
  return largest;
}

// The weights of one sealed page: low plane, and (page 0) high plane.
void store_page(const float* weighted, float inverse, bool two_planes, dot_weight* low,
                dot_weight* high, std::int32_t* bias, std::int32_t* high_bias) {
  vi code[4], plane[4];
  unroll<4>([&](auto b) MS_LAMBDA {
    code[b] = vround(vmul(vload(weighted + 16 * b), vset(inverse)));
    plane[b] = two_planes ? iand(code[b], iset(255)) : code[b];
  });
  store_page_weights(low, plane);
  const auto sum = [&] { return sum_of(iadd(iadd(plane[0], plane[1]), iadd(plane[2], plane[3]))); };
  if constexpr (kValueBias != 0) *bias = kValueBias * sum();
  if (!two_planes) return;
  unroll<4>([&](auto b) MS_LAMBDA { plane[b] = ishr<8>(code[b]); });
  store_page_weights(high, plane);
  if constexpr (kValueBias != 0) *high_bias = kValueBias * sum();
}

// P of sealed pages [begin, end) of row r, from the largest lanes of each page. All pages' scales
// at once: a maximum over lanes and a division are long for one number.
void quantize_weights(RowBlock* block, std::int64_t r, std::int64_t begin, std::int64_t end,
                      const std::int32_t* largest) {
  const bool first_chunk = block->args->chunk == 0;
  const vf wmax = vfloat(iumax_rows(largest));
  const vf steps = vselect(vrange(0, first_chunk ? 1 : 0), vset(65535.0f), vset(255.0f));
  const vm finite = vless(wmax, vset(__builtin_inff()));
  const vm tiny = vless(wmax, vset(kTiny));
  const vf zero = vset(0.0f);
  float inverse[16];
  vstore(inverse, vselect(finite, vselect(tiny, zero, vdiv(steps, wmax)), zero));
  vstore(block->step + 16 * r,
         vselect(finite, vselect(tiny, zero, vdiv(wmax, steps)), vset(__builtin_nanf(""))));
  dot_weight* weight = block->weight + r * kWeightStride;
  std::int32_t* bias = block->value_bias + 16 * r;
  for (std::int64_t p = begin; p < end; ++p) {
    store_page(block->score + r * kMergeChunk + p * kPageTokens, inverse[p], first_chunk && p == 0,
               weight + p * kPageTokens, weight + kMergeChunk, bias + p, bias + kPagesPerChunk);
  }
}

AttentionPartial softmax(RowBlock* block, std::int64_t r) {
  float* score = block->score + r * kMergeChunk;
  const std::int64_t first = block->first[r];
  const std::int64_t last = block->last[r];
  const float m = largest_score(score, first, last, block->args->softcap);
  const vf top = vset(m);
  vf total = vset(0.0f);
  alignas(64) std::int32_t largest[kPagesPerChunk * 16];
  const std::int64_t begin = first / kPageTokens;
  const std::int64_t pages = last / kPageTokens + 1;
  const std::int64_t sealed = pages < block->sealed_end[r] ? pages : block->sealed_end[r];
  for (std::int64_t p = 0; p < kPagesPerChunk; ++p) {
    if (p < begin || p >= sealed) istore(largest + 16 * p, iset(0));
  }
  for (std::int64_t p = begin; p < pages; ++p) {
    float* page = score + p * kPageTokens;
    const float* scale = block->value_scale + p * kPageTokens;
    const std::int64_t low = first - p * kPageTokens;
    const std::int64_t high = last - p * kPageTokens;
    if (p >= sealed) {
      exp_page<false, true>(page, scale, top, low, high, &total);
      continue;
    }
    const vi lanes = low <= 0 && high >= kPageTokens - 1
                         ? exp_page<true, false>(page, scale, top, low, high, &total)
                         : exp_page<true, true>(page, scale, top, low, high, &total);
    istore(largest + 16 * p, lanes);
    if (block->fetch.args) block->fetch.lines(block->fetch.lines_a_row_page);
  }
  if (begin < sealed) quantize_weights(block, r, begin, sealed, largest);
  return {m, canonical(vtree_sum(total))};
}

}  // namespace
}  // namespace musespark

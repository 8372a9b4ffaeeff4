// Attention over whole texts over the vector vocabulary: packing, the weights of a row, and what
// becomes of the sums. attention/whole_scalar.cc says what it computes; whole_dot.inl and
// whole_amx.inl have the products.
//
// Keys lie [page][4 blocks][depth / 4][16 keys][4 d], D padded to `depth` by zeros, each code with
// its bits flipped by `flip`; values [page][16 quads][D / 16][16 d][4 keys].
#pragma once

#include <cstdint>

#include "kernels/attention/whole.h"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

constexpr float kWholeTiny = 1e-30f;
constexpr std::int64_t kWholeRows = 16;
constexpr std::int64_t kRowsAhead = 8;  // rows lie pages apart, where no hardware looks ahead

MS_INLINE std::int64_t rounded_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}
MS_INLINE std::int64_t value_dim(const WholeHead& head) { return rounded_up(head.head_dim, 16); }
MS_INLINE std::int64_t floats_at(std::int64_t dim, std::int64_t d) {
  return dim - d < 16 ? dim - d : 16;
}
MS_INLINE vi whole_magnitude(vf x) { return iand(vbits(x), iset(0x7fffffff)); }

// ---- packing ----------------------------------------------------------------------------------

// Four vectors of codes as bytes 0..3 of each lane.
MS_INLINE vi four_codes(const vi (&c)[4]) {
  const vi byte = iset(255);
  const vi low = ior(iand(c[0], byte), ishl<8>(iand(c[1], byte)));
  return ior(low, ior(ishl<16>(iand(c[2], byte)), ishl<24>(c[3])));
}

MS_INLINE vi whole_codes(vf x, vf inverse) {
  return vround(vmax(vset(-127.0f), vmin(vset(127.0f), vmul(x, inverse))));
}

// The mean rows of keys and values, zeros past D.
void whole_means(const float* x, std::int64_t ld, const WholeHead& to, float* mean) {
  const std::int64_t dim = value_dim(to);
  for (std::int64_t d = 0; d < dim; d += 16) vstore(mean + d, vset(0.0f));
  for (std::int64_t j = 0; j < to.count; ++j) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      __builtin_prefetch(x + (j + kRowsAhead) * ld + d);
      const vf row = vload_n(x + j * ld + d, floats_at(to.head_dim, d));
      vstore(mean + d, vadd(vload(mean + d), row));
    }
  }
  const vf share = vset(1.0f / static_cast<float>(to.count));
  for (std::int64_t d = 0; d < dim; d += 16) {
    vstore(mean + d, vcanonical(vmul(vload(mean + d), share)));
  }
}

// Keys [first, first + count) of a block of sixteen, less the mean: [D padded][16], zeros
// elsewhere.
vi turn_keys(const float* k, std::int64_t ld, std::int64_t count, const WholeHead& to,
             const float* mean, float* turned) {
  const std::int64_t dim = value_dim(to);
  vi largest = iset(0);
  for (std::int64_t j = 0; j < 16; ++j) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      const std::int64_t floats = floats_at(to.head_dim, d);
      float row[16];
      const vf x = j < count ? vsub(vload_n(k + j * ld + d, floats), vload(mean + d)) : vset(0.0f);
      const vf there = vselect(vrange(0, floats), x, vset(0.0f));
      largest = imax(largest, whole_magnitude(there));
      vstore(row, there);
      for (std::int64_t i = 0; i < 16; ++i) turned[(d + i) * 16 + j] = row[i];
    }
  }
  return largest;
}

void whole_pack_keys(const float* k, std::int64_t ld, std::int64_t depth, std::int32_t flip,
                     const WholeHead& to) {
  float mean[kWholeMostDim];
  alignas(64) float turned[4][kWholeMostDim * 16];
  const std::int64_t dim = value_dim(to);
  whole_means(k, ld, to, mean);
  for (std::int64_t g = 0; g < whole_pages(to); ++g) {
    vi largest = iset(0);
    for (std::int64_t b = 0; b < 4; ++b) {
      const std::int64_t first = g * kWholePage + 16 * b;
      largest = imax(largest, turn_keys(k + first * ld, ld, to.count - first, to, mean, turned[b]));
    }
    const std::int32_t bits = itree_max(largest);
    const float amax = __builtin_bit_cast(float, bits);
    const bool finite = bits < 0x7f800000, used = finite && !(amax < kWholeTiny);
    to.key_scale[g] = used ? amax / 127.0f : finite ? 0.0f : __builtin_nanf("");
    const vf inverse = vset(used ? 127.0f / amax : 0.0f);
    for (std::int64_t b = 0; b < 4; ++b) {
      std::uint8_t* codes = to.keys + (g * 4 + b) * 16 * depth;
      for (std::int64_t d = 0; d < depth; d += 4) {
        vi code[4];
        for (int i = 0; i < 4; ++i) {
          code[i] =
              used && d < dim ? whole_codes(vload(turned[b] + (d + i) * 16), inverse) : iset(0);
        }
        istore(codes + d * 16, ixor(four_codes(code), iset(flip)));
      }
    }
  }
}

void whole_pack_values(const float* v, std::int64_t ld, const WholeHead& to) {
  const std::int64_t dim = value_dim(to);
  whole_means(v, ld, to, to.value_mean);
  for (std::int64_t d = 0; d < dim; d += 16) {
    const std::int64_t floats = floats_at(to.head_dim, d);
    const vf mean = vload(to.value_mean + d);
    vi largest = iset(0);
    for (std::int64_t j = 0; j < to.count; ++j) {
      largest = imax(largest, whole_magnitude(vsub(vload_n(v + j * ld + d, floats), mean)));
    }
    const vf amax = vfloat(largest), nothing = vset(0.0f);
    const vm finite = vless(amax, vset(__builtin_inff())), tiny = vless(amax, vset(kWholeTiny));
    const vf scale = vselect(tiny, nothing, vdiv(amax, vset(127.0f)));
    vstore(to.value_scale + d, vselect(finite, scale, vset(__builtin_nanf(""))));
    const vf inverse = vselect(tiny, nothing, vdiv(vset(127.0f), amax));
    for (std::int64_t j = 0; j < whole_pages(to) * kWholePage; j += 4) {
      vi code[4];
      for (std::int64_t i = 0; i < 4; ++i) {
        const float* from = v + (j + i) * ld + d;
        const vf x = j + i < to.count ? vsub(vload_n(from, floats), mean) : nothing;
        code[i] = iselect(finite, whole_codes(x, inverse), iset(0));
      }
      istore(to.values + (j / 4 * (dim / 16) + d / 16) * 64, four_codes(code));
    }
  }
}

// ---- rows -------------------------------------------------------------------------------------

// What is known of a query row beside its codes.
struct WholeRow {
  float f;            // of the scores: (amax / 127) * factor
  std::int32_t bias;  // kKeyBias times the sum of the codes
  bool usable;        // else the row is NaN
  float sum;          // of P
};

// Codes of D floats, zeros up to `depth`; rows lie ldq floats apart.
void whole_query(const float* q, std::int64_t ldq, std::int64_t dim, std::int64_t depth,
                 float factor, dot_weight* codes, WholeRow* row) {
  vi largest = iset(0);
  for (std::int64_t d = 0; d < dim; d += 16) {
    __builtin_prefetch(q + kRowsAhead * ldq + d);
    largest = imax(largest, whole_magnitude(vload_n(q + d, floats_at(dim, d))));
  }
  const std::int32_t bits = itree_max(largest);
  const float amax = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000, used = finite && !(amax < kWholeTiny);
  const float scale = used ? amax / 127.0f : finite ? 0.0f : __builtin_nanf("");
  const vf inverse = vset(used ? 127.0f / amax : 0.0f);
  vi sum = iset(0);
  for (std::int64_t d = 0; d < depth; d += 16) {
    const vi code =
        used && d < dim ? whole_codes(vload_n(q + d, floats_at(dim, d)), inverse) : iset(0);
    sum = iadd(sum, code);
    store_weights(codes + d, code);
  }
  row->f = scale * factor;
  std::int32_t lanes[16];
  istore(lanes, sum);
  row->bias = 0;
  for (std::int32_t lane : lanes) row->bias += kKeyBias * lane;
}

// The largest score of a row of sums, keys past the last left out; says whether the row is usable.
float whole_largest(const WholeHead& head, const std::int32_t* dots, WholeRow* row) {
  vf top = vset(-__builtin_inff());
  row->usable = true;
  for (std::int64_t g = 0; g < whole_pages(head); ++g) {
    const float c = row->f * head.key_scale[g];
    if (!(c < 1e30f)) row->usable = false;
    const std::int64_t left = head.count - g * kWholePage;
    vi x[4];
    for (int b = 0; b < 4; ++b) x[b] = iload(dots + g * kWholePage + 16 * b);
    if (left < kWholePage) {
      for (int b = 0; b < 4; ++b) {
        x[b] = iselect(vrange(0, left - 16 * b), x[b], iset(-(1 << 30)));
      }
    }
    const vi most = imax(imax(x[0], x[1]), imax(x[2], x[3]));
    top = vmax(vmul(vconvert(most), vset(c)), top);
  }
  return vtree_max(top);
}

MS_INLINE vi whole_weight(vi dot, vf c, vf base) {
  const vf t = vmax(vset(-2.0f), vmin(vset(kWholeTop), vfma(vconvert(dot), c, base)));
  const vf shift = vset(0x1.8p23f);
  const vf r = vsub(vadd(t, shift), shift);
  const vf f = vsub(t, r);
  vf p = vfma(vset(kExp2[3]), f, vset(kExp2[2]));
  p = vfma(p, f, vset(kExp2[1]));
  p = vfma(p, f, vset(kExp2[0]));
  return vround(vscale2(p, r));
}

MS_INLINE std::int32_t lanes_sum(vi x) {
  std::int32_t lanes[16];
  istore(lanes, x);
  std::int32_t sum = 0;
  for (std::int32_t lane : lanes) sum += lane;
  return sum;
}

// P of pages [begin, end) of a row in two planes, and their sum.
MS_INLINE std::int32_t whole_weights(const WholeHead& head, const std::int32_t* dots,
                                     const WholeRow& row, float largest, std::int64_t begin,
                                     std::int64_t end, dot_weight* low, dot_weight* high) {
  const vf base = vset(kWholeTop - largest);
  vi total = iset(0);
  for (std::int64_t g = begin; g < end; ++g) {
    const vf c = vset(row.f * head.key_scale[g]);
    const std::int64_t left = head.count - g * kWholePage;
    vi weight[4];
    unroll<4>([&](auto b) MS_LAMBDA {
      weight[b] = whole_weight(iload(dots + g * kWholePage + 16 * b), c, base);
    });
    if (left < kWholePage) {
      for (int b = 0; b < 4; ++b) {
        weight[b] = iselect(vrange(0, left - 16 * b), weight[b], iset(0));
      }
    }
    total = iadd(total, iadd(iadd(weight[0], weight[1]), iadd(weight[2], weight[3])));
    store_planes(low + g * kWholePage, high + g * kWholePage, weight);
  }
  return lanes_sum(total);
}

// a = sums of both planes of 16 channels.
MS_INLINE vf whole_joined(vi low, vi high) {
  return vfma(vconvert(high), vset(256.0f), vconvert(low));
}

// Sixteen channels from d on of a row, of a.
MS_INLINE void whole_finish(const WholeHead& head, const WholeRow& row, std::int64_t d, vf a,
                            float* out) {
  const vf scale = vmul(vload(head.value_scale + d), vset(1.0f / row.sum));
  const vf y = vfma(a, scale, vload(head.value_mean + d));
  const vf nan = vset(__builtin_nanf(""));
  vstore_n(out + d, row.usable ? vcanonical(y) : nan, floats_at(head.head_dim, d));
}

}  // namespace
}  // namespace musespark

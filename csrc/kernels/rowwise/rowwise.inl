// The rowwise kernels over the vector vocabulary; rowwise/scalar.cc says what they compute.
#pragma once

#include <cstdint>

#include "kernels/detail/math.inl"
#include "kernels/rowwise/rowwise.h"

namespace musespark {
namespace {

// f(i, count) for blocks of 16 elements and what is left (count < 16).
template <class F>
MS_INLINE void each_block(std::int64_t n, F f) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, std::int64_t{16});
  if (i < n) f(i, n - i);
}

MS_INLINE vf zero_from(vf x, std::int64_t count) {
  return count == 16 ? x : vselect(vrange(0, count), x, vset(0.0f));
}

MS_INLINE float inverse_deviation(float sum, std::int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

void rms_norm(const float* x, const float* w, float eps, std::int64_t n, float* out) {
  vf squares = vset(0.0f);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf v = vload_n(x + i, count);
    squares = vfma(v, v, squares);
  });
  const vf r = vset(inverse_deviation(vtree_sum(squares), n, eps));
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    vf y = vmul(vload_n(x + i, count), r);
    if (w) y = vmul(y, vload_n(w + i, count));
    vstore_n(out + i, vcanonical(y), count);
  });
}

void layer_norm(const float* x, const float* w, const float* b, float eps, std::int64_t n,
                float* out) {
  vf total = vset(0.0f);
  each_block(
      n, [&](std::int64_t i, std::int64_t count) { total = vadd(total, vload_n(x + i, count)); });
  const vf mean = vset(vtree_sum(total) / static_cast<float>(n));
  vf squares = vset(0.0f);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf d = zero_from(vsub(vload_n(x + i, count), mean), count);
    squares = vfma(d, d, squares);
  });
  const vf r = vset(inverse_deviation(vtree_sum(squares), n, eps));
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf y = vmul(vsub(vload_n(x + i, count), mean), r);
    const vf weight = w ? vload_n(w + i, count) : vset(1.0f);
    vstore_n(out + i, vcanonical(b ? vfma(y, weight, vload_n(b + i, count)) : vmul(y, weight)),
             count);
  });
}

void add(const float* a, const float* b, std::int64_t n, float* out) {
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    vstore_n(out + i, vcanonical(vadd(vload_n(a + i, count), vload_n(b + i, count))), count);
  });
}

void scale(const float* x, float s, std::int64_t n, float* out) {
  const vf factor = vset(s);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    vstore_n(out + i, vcanonical(vmul(vload_n(x + i, count), factor)), count);
  });
}

template <Activation kKind>
MS_INLINE vf activation(vf x) {
  if constexpr (kKind == Activation::silu) return vdiv(x, vlogistic_denominator(x));
  if constexpr (kKind == Activation::gelu_tanh) return vgelu_tanh(x);
  if constexpr (kKind == Activation::gelu) return vgelu(x);
  if constexpr (kKind == Activation::quick_gelu) {
    return vdiv(x, vlogistic_denominator(vmul(vset(1.702f), x)));
  }
  std::int32_t zero = 0;
  __asm__("" : "+r"(zero));  // see relu_of in scalar.cc
  const vf y = vmax(vfloat(iset(zero)), x);
  return kKind == Activation::relu ? y : vmul(y, y);
}

// up null: f(x) alone.
template <Activation kKind>
void activate_as(const float* x, const float* up, std::int64_t n, float* out) {
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    vf y = activation<kKind>(vload_n(x + i, count));
    if (up) y = vmul(y, vload_n(up + i, count));
    vstore_n(out + i, vcanonical(y), count);
  });
}

void activate_mul(Activation kind, const float* gate, const float* up, std::int64_t n, float* out) {
  switch (kind) {
    case Activation::silu:
      return activate_as<Activation::silu>(gate, up, n, out);
    case Activation::gelu_tanh:
      return activate_as<Activation::gelu_tanh>(gate, up, n, out);
    case Activation::gelu:
      return activate_as<Activation::gelu>(gate, up, n, out);
    case Activation::relu:
      return activate_as<Activation::relu>(gate, up, n, out);
    case Activation::relu2:
      return activate_as<Activation::relu2>(gate, up, n, out);
    case Activation::quick_gelu:
      return activate_as<Activation::quick_gelu>(gate, up, n, out);
  }
}

void activate(Activation kind, const float* x, std::int64_t n, float* out) {
  activate_mul(kind, x, nullptr, n, out);
}

void sigmoid_mul(const float* x, const float* gate, std::int64_t n, float* out) {
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf s = vdiv(vset(1.0f), vlogistic_denominator(vload_n(gate + i, count)));
    vstore_n(out + i, vcanonical(vmul(vload_n(x + i, count), s)), count);
  });
}

void softcap(const float* x, float mult, float cap, std::int64_t n, float* out) {
  if (cap == 0.0f) return scale(x, mult, n, out);
  const vf factor = vset(mult);
  const vf limit = vset(cap);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf y = vmul(vload_n(x + i, count), factor);
    vstore_n(out + i, vcanonical(vmul(limit, vtanh(vdiv(y, limit)))), count);
  });
}

void rope(float* x, const float* cos, const float* sin, std::int64_t half, int interleaved) {
  if (!interleaved) {
    each_block(half, [&](std::int64_t i, std::int64_t count) {
      const vf x0 = vload_n(x + i, count);
      const vf x1 = vload_n(x + i + half, count);
      const vf c = vload_n(cos + i, count);
      const vf s = vload_n(sin + i, count);
      vstore_n(x + i, vcanonical(vfma(vnegate(x1), s, vmul(x0, c))), count);
      vstore_n(x + i + half, vcanonical(vfma(x0, s, vmul(x1, c))), count);
    });
    return;
  }
  // Eight pairs a vector: the partner of each lane is its neighbour, negated in even lanes.
  static constexpr std::uint32_t kEvenSign[16] = {0x80000000u, 0, 0x80000000u, 0, 0x80000000u, 0,
                                                  0x80000000u, 0, 0x80000000u, 0, 0x80000000u, 0,
                                                  0x80000000u, 0, 0x80000000u, 0};
  const vi sign = iload(reinterpret_cast<const std::int32_t*>(kEvenSign));
  for (std::int64_t i = 0; i < half; i += 8) {
    const std::int64_t pairs = half - i < 8 ? half - i : 8;
    const vf v = vload_n(x + 2 * i, 2 * pairs);
    const vf c = vtwice(vload_n(cos + i, pairs));
    const vf s = vtwice(vload_n(sin + i, pairs));
    const vf partner = vfloat(ixor(vbits(vswap1(v)), sign));
    vstore_n(x + 2 * i, vcanonical(vfma(partner, s, vmul(v, c))), 2 * pairs);
  }
}

// One stage inside a vector: lane i becomes x[i] + x[i^stride], or x[i^stride] - x[i] where i has
// the stride's bit set.
MS_INLINE vf butterfly(vf x, vf partner, const std::uint32_t* sign) {
  const vi flip = iload(reinterpret_cast<const std::int32_t*>(sign));
  return vadd(partner, vfloat(ixor(vbits(x), flip)));
}

MS_INLINE vf hadamard16(vf x) {
  constexpr std::uint32_t m = 0x80000000u;
  static constexpr std::uint32_t kSign[4][16] = {{0, m, 0, m, 0, m, 0, m, 0, m, 0, m, 0, m, 0, m},
                                                 {0, 0, m, m, 0, 0, m, m, 0, 0, m, m, 0, 0, m, m},
                                                 {0, 0, 0, 0, m, m, m, m, 0, 0, 0, 0, m, m, m, m},
                                                 {0, 0, 0, 0, 0, 0, 0, 0, m, m, m, m, m, m, m, m}};
  x = butterfly(x, vswap1(x), kSign[0]);
  x = butterfly(x, vswap2(x), kSign[1]);
  x = butterfly(x, vswap4(x), kSign[2]);
  return butterfly(x, vswap8(x), kSign[3]);
}

// The m x m matrix that mixes blocks: DCT-II or its transpose, from a quarter wave of the table.
void dct_matrix(std::int64_t m, int inverse, float* matrix) {
  const float* wave = kDct + (m - 1) / 2 * 33;
  for (std::int64_t a = 0; a < m; ++a) {
    for (std::int64_t i = 0; i < m; ++i) {
      std::int64_t k = (2 * i + 1) * a % (4 * m);
      if (k > 2 * m) k = 4 * m - k;
      const float entry = a == 0 ? wave[32] : k > m ? -wave[2 * m - k] : wave[k];
      matrix[inverse ? i * m + a : a * m + i] = entry;
    }
  }
}

void rotate(float* x, std::int64_t d, int inverse) {
  const int k = __builtin_ctzll(static_cast<unsigned long long>(d));
  const std::int64_t width = std::int64_t{1} << k;
  const std::int64_t m = d >> k;
  for (std::int64_t i = 0; i < d; i += 16) vstore(x + i, hadamard16(vload(x + i)));
  for (std::int64_t stride = 16; stride < width; stride *= 2) {
    for (std::int64_t block = 0; block < d; block += 2 * stride) {
      for (std::int64_t j = block; j < block + stride; j += 16) {
        const vf a = vload(x + j);
        const vf b = vload(x + j + stride);
        vstore(x + j, vadd(a, b));
        vstore(x + j + stride, vsub(a, b));
      }
    }
  }
  const vf factor = vset(kHadamardScale[k]);
  if (m == 1) {
    for (std::int64_t j = 0; j < d; j += 16) vstore(x + j, vcanonical(vmul(vload(x + j), factor)));
    return;
  }
  float matrix[31 * 31];
  dct_matrix(m, inverse, matrix);
  for (std::int64_t j = 0; j < width; j += 16) {
    vf column[31];
    for (std::int64_t i = 0; i < m; ++i) column[i] = vload(x + i * width + j);
    for (std::int64_t a = 0; a < m; ++a) {
      vf sum = vset(0.0f);
      for (std::int64_t i = 0; i < m; ++i) sum = vfma(vset(matrix[a * m + i]), column[i], sum);
      vstore(x + a * width + j, vcanonical(vmul(sum, factor)));
    }
  }
}

float row_max(const float* x, std::int64_t n) {
  const vf lowest = vset(-__builtin_inff());
  vf lanes = lowest;
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    vf v = vload_n(x + i, count);
    if (count < 16) v = vselect(vrange(0, count), v, lowest);
    lanes = vmax(v, lanes);
  });
  return vtree_max(lanes);
}

float exp_sum(const float* x, float max, std::int64_t n, float* out) {
  const vf top = vset(max);
  vf total = vset(0.0f);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf e = zero_from(vexp(vsub(vload_n(x + i, count), top)), count);
    total = vadd(total, e);
    if (out) vstore_n(out + i, vcanonical(e), count);
  });
  return canonical(vtree_sum(total));
}

void exp_moments(const float* x, float max, std::int64_t n, float* sums) {
  const vf top = vset(max);
  const vf least = vset(-104.0f);
  vf total = vset(0.0f), weighted = vset(0.0f);
  each_block(n, [&](std::int64_t i, std::int64_t count) {
    const vf z = zero_from(vmax(least, vsub(vload_n(x + i, count), top)), count);
    const vf e = zero_from(vexp(z), count);
    total = vadd(total, e);
    weighted = vfma(z, e, weighted);
  });
  sums[0] = canonical(vtree_sum(total));
  sums[1] = canonical(vtree_sum(weighted));
}

void lane_maxima(const float* x, std::int64_t n, float* out) {
  constexpr int kVectors = kMaximaLanes / 16;
  const vf lowest = vset(-__builtin_inff());
  vf lanes[kVectors];
  for (vf& l : lanes) l = lowest;
  std::int64_t i = 0;
  for (; i + kMaximaLanes <= n; i += kMaximaLanes) {
    for (int v = 0; v < kVectors; ++v) lanes[v] = vmax(vload(x + i + 16 * v), lanes[v]);
  }
  for (int v = 0; i < n; ++v, i += 16) {
    const std::int64_t count = n - i < 16 ? n - i : 16;
    lanes[v] = vmax(vselect(vrange(0, count), vload_n(x + i, count), lowest), lanes[v]);
  }
  for (int v = 0; v < kVectors; ++v) vstore(out + 16 * v, lanes[v]);
}

// Bit i: x[i] is at least the bound, i < count <= 16.
MS_INLINE std::uint64_t at_least(const float* x, std::int64_t count, vf bound) {
  const vf v = vload_n(x, count);
  const std::uint32_t others = vlane_bits(vless(v, bound)) | vlane_bits(vunordered(v));
  return ~others & ((1u << count) - 1);
}

// Few are expected. How many of 64 there are cannot be foreseen: three are written in any case, so
// that a branch is taken for more alone; what is written too much the next ones overwrite.
std::int64_t collect(const float* x, float least, std::int64_t n, float* out) {
  constexpr std::uint64_t kLast = std::uint64_t{1} << 63;
  const vf bound = vset(least);
  std::int64_t found = 0, i = 0;
  for (; i + 64 <= n; i += 64) {
    std::uint64_t rest = 0;
    for (int j = 0; j < 64; j += 16) rest |= at_least(x + i + j, 16, bound) << j;
    const std::int64_t end = found + __builtin_popcountll(rest);
    for (int k = 0; k < 3; ++k, rest &= rest - 1) {
      out[found + k] = x[i + __builtin_ctzll(rest | kLast)];
    }
    for (found += 3; found < end; ++found, rest &= rest - 1) {
      out[found] = x[i + __builtin_ctzll(rest)];
    }
    found = end;
  }
  for (; i < n; i += 16) {
    std::uint64_t rest = at_least(x + i, n - i < 16 ? n - i : 16, bound);
    for (; rest != 0; rest &= rest - 1) out[found++] = x[i + __builtin_ctzll(rest)];
  }
  return found;
}

constexpr RowwiseKernels kRowwise = {rms_norm,     layer_norm,  add,         scale,       activate,
                                     activate_mul, sigmoid_mul, softcap,     rope,        rotate,
                                     row_max,      exp_sum,     exp_moments, lane_maxima, collect};

}  // namespace
}  // namespace musespark

// Contract of the rowwise kernels: float32, one row at a time, same bits on every instruction set.
//
// Reductions over a row: 16 lanes from +0, lane = index mod 16, ascending (indices past the end add
// nothing), then the tree l[i] += l[i+8]; l[i] += l[i+4]; l[i] += l[i+2]; l[0] += l[1].
// exp, tanh, sigmoid, ... are the polynomials of kernels/detail/scalar_math.inl (vectors:
// math.inl), one sequence of operations. Every NaN written is the canonical 0x7fc00000. In-place
// (out == x) is allowed everywhere unless said otherwise; other overlap is not.
#pragma once

#include <cstdint>

namespace musespark {

// quick_gelu: x / (1 + exp(-(1.702 * x))).
enum class Activation : std::uint32_t {
  silu = 0,
  gelu_tanh = 1,
  gelu = 2,
  relu = 3,
  relu2 = 4,
  quick_gelu = 5
};

inline constexpr int kMaximaLanes = 64;

struct RowwiseKernels {
  // ss = sum fma(x, x, lane); r = 1 / sqrt(ss / n + eps); out = (x * r) * w      (w null: x * r)
  void (*rms_norm)(const float* x, const float* w, float eps, std::int64_t n, float* out);
  // mean = sum(x) / n; var = sum((x-mean)^2) / n; out = ((x - mean) * (1/sqrt(var+eps))) * w + b
  // (fma for the last; b null: no bias)
  void (*layer_norm)(const float* x, const float* w, const float* b, float eps, std::int64_t n,
                     float* out);
  void (*add)(const float* a, const float* b, std::int64_t n, float* out);        // a + b
  void (*scale)(const float* x, float s, std::int64_t n, float* out);             // x * s
  void (*activate)(Activation kind, const float* x, std::int64_t n, float* out);  // f(x)
  void (*activate_mul)(Activation kind, const float* gate, const float* up, std::int64_t n,
                       float* out);  // f(gate) * up
  void (*sigmoid_mul)(const float* x, const float* gate, std::int64_t n,
                      float* out);  // x*sigm(gate)
  // out = cap * tanh((x * mult) / cap);  cap = 0: x * mult
  void (*softcap)(const float* x, float mult, float cap, std::int64_t n, float* out);
  // Rotates pairs of the first 2*half floats of a head in place. interleaved = 0: (i, i+half), 1:
  // (2i, 2i+1).
  //   y0 = fma(-x1, sin, x0 * cos);  y1 = fma(x0, sin, x1 * cos)      cos, sin: [half]
  void (*rope)(float* x, const float* cos, const float* sin, std::int64_t half, int interleaved);
  // x -> R x (inverse != 0: R^T x) in place, d floats, d a multiple of 16 and <= 512, d = m * 2^k
  // with m odd: Walsh-Hadamard over 2^k (stages of stride 1, 2, 4, ...; a+b, a-b), then, where m >
  // 1, the DCT-II matrix over m (its transpose; entries kDct of detail/constants.h; one fma chain,
  // i ascending from +0), then times float(1/sqrt(2^k)). Element (i, j), i < m, j < 2^k, is x[i *
  // 2^k + j].
  void (*rotate)(float* x, std::int64_t d, int inverse);
  // Deterministic softmax helpers for the sampler: max in 16 lanes from -inf (l = x > l ? x : l, so
  // a NaN is never taken), then the sum of exp(x - max) in 16 lanes; out: the exponentials.
  float (*row_max)(const float* x, std::int64_t n);
  float (*exp_sum)(const float* x, float max, std::int64_t n, float* out);  // out may be null
  // z = max(-104, x - max); e = exp(z): sums[0] of e, sums[1] of fma(z, e, lane), in 16 lanes.
  void (*exp_moments)(const float* x, float max, std::int64_t n, float* sums);
  // out[j], j < kMaximaLanes: the largest x[i] of i mod kMaximaLanes = j, from -inf, as row_max.
  void (*lane_maxima)(const float* x, std::int64_t n, float* out);
  // Those of x at least `least`, in order, to out [n], undefined behind them; how many. out != x.
  std::int64_t (*collect)(const float* x, float least, std::int64_t n, float* out);
};

}  // namespace musespark

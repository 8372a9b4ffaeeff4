// The specification of the rowwise kernels: one element after another.
#include <cstdint>

#include "kernels/detail/scalar_math.inl"
#include "kernels/entries.h"

namespace musespark {
namespace {

float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

float gelu_of(float x) {
  const float z = abs_of(x) * kSqrtHalf;
  const float t = 1.0f / fma(z, kErfcSlope, 1.0f);
  float p = kErfc[8];
  for (int i = 7; i >= 0; --i) p = fma(p, t, kErfc[i]);
  const float tail = exp_of(-(z * z)) * (t * p);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

float gelu_tanh_of(float x) {
  const float cubed = (x * x) * x;
  const float inner = fma(cubed, kGeluCube, x) * kGeluInner;
  return x / (1.0f + exp_of(-inner));
}

// Sixteen partial sums of a row, element i in lane i mod 16, and their tree.
struct Lanes {
  float lane[16] = {};

  float sum() const {
    float l[16];
    for (int i = 0; i < 16; ++i) l[i] = lane[i];
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) l[i] += l[i + half];
    }
    return l[0];
  }
};

void rms_norm(const float* x, const float* w, float eps, std::int64_t n, float* out) {
  Lanes squares;
  for (std::int64_t i = 0; i < n; ++i) {
    squares.lane[i % 16] = fma(x[i], x[i], squares.lane[i % 16]);
  }
  const float r = 1.0f / __builtin_sqrtf(squares.sum() / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(w ? (x[i] * r) * w[i] : x[i] * r);
}

void layer_norm(const float* x, const float* w, const float* b, float eps, std::int64_t n,
                float* out) {
  Lanes total;
  for (std::int64_t i = 0; i < n; ++i) total.lane[i % 16] += x[i];
  const float mean = total.sum() / static_cast<float>(n);
  Lanes squares;
  for (std::int64_t i = 0; i < n; ++i) {
    const float d = x[i] - mean;
    squares.lane[i % 16] = fma(d, d, squares.lane[i % 16]);
  }
  const float r = 1.0f / __builtin_sqrtf(squares.sum() / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < n; ++i) {
    const float y = (x[i] - mean) * r;
    const float weight = w ? w[i] : 1.0f;
    out[i] = canonical(b ? fma(y, weight, b[i]) : y * weight);
  }
}

void add(const float* a, const float* b, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(a[i] + b[i]);
}

void scale(const float* x, float s, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(x[i] * s);
}

// 0 for what is below it; -0 and NaN stay. The zero is one that Clang does not know: on AArch64 it
// takes a comparison with a known one for FMAX, which makes +0 of -0.
float relu_of(float x) {
  std::uint32_t zero = 0;
  __asm__("" : "+r"(zero));
  return max_of(float_of(zero), x);
}

float activation(Activation kind, float x) {
  switch (kind) {
    case Activation::silu:
      return x / (1.0f + exp_of(-x));
    case Activation::gelu_tanh:
      return gelu_tanh_of(x);
    case Activation::gelu:
      return gelu_of(x);
    case Activation::relu:
      return relu_of(x);
    case Activation::relu2:
      return relu_of(x) * relu_of(x);
    case Activation::quick_gelu:
      return x / (1.0f + exp_of(-(1.702f * x)));
  }
  return x;
}

void activate(Activation kind, const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(activation(kind, x[i]));
}

void activate_mul(Activation kind, const float* gate, const float* up, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(activation(kind, gate[i]) * up[i]);
}

void sigmoid_mul(const float* x, const float* gate, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = canonical(x[i] * sigmoid_of(gate[i]));
}

void softcap(const float* x, float mult, float cap, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float y = x[i] * mult;
    out[i] = canonical(cap == 0.0f ? y : cap * tanh_of(y / cap));
  }
}

void rope(float* x, const float* cos, const float* sin, std::int64_t half, int interleaved) {
  for (std::int64_t i = 0; i < half; ++i) {
    float* first = interleaved ? x + 2 * i : x + i;
    float* second = interleaved ? x + 2 * i + 1 : x + i + half;
    const float x0 = *first;
    const float x1 = *second;
    *first = canonical(fma(-x1, sin[i], x0 * cos[i]));
    *second = canonical(fma(x0, sin[i], x1 * cos[i]));
  }
}

// Row a, column i of the orthonormal DCT-II of odd m: s_a cos(pi (2i+1) a / 2m), by symmetry from a
// quarter wave of the table.
float dct_entry(std::int64_t m, std::int64_t a, std::int64_t i) {
  const float* wave = kDct + (m - 1) / 2 * 33;
  if (a == 0) return wave[32];
  std::int64_t k = (2 * i + 1) * a % (4 * m);
  if (k > 2 * m) k = 4 * m - k;
  return k > m ? -wave[2 * m - k] : wave[k];
}

void rotate(float* x, std::int64_t d, int inverse) {
  std::int64_t m = d;
  int k = 0;
  while (m % 2 == 0) {
    m /= 2;
    ++k;
  }
  const std::int64_t width = std::int64_t{1} << k;
  for (std::int64_t i = 0; i < m; ++i) {
    float* block = x + i * width;
    for (std::int64_t stride = 1; stride < width; stride *= 2) {
      for (std::int64_t j = 0; j < width; ++j) {
        if (j & stride) continue;
        const float a = block[j];
        const float b = block[j + stride];
        block[j] = a + b;
        block[j + stride] = a - b;
      }
    }
  }
  for (std::int64_t j = 0; j < width; ++j) {
    float column[31];
    for (std::int64_t i = 0; i < m; ++i) column[i] = x[i * width + j];
    for (std::int64_t a = 0; a < m; ++a) {
      float sum = m == 1 ? column[0] : 0.0f;
      for (std::int64_t i = 0; i < m && m > 1; ++i) {
        sum = fma(inverse ? dct_entry(m, i, a) : dct_entry(m, a, i), column[i], sum);
      }
      x[a * width + j] = canonical(sum * kHadamardScale[k]);
    }
  }
}

float row_max(const float* x, std::int64_t n) {
  float lane[16];
  for (float& l : lane) l = -__builtin_inff();
  for (std::int64_t i = 0; i < n; ++i) lane[i % 16] = max_of(x[i], lane[i % 16]);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = max_of(lane[i + half], lane[i]);
  }
  return lane[0];
}

float exp_sum(const float* x, float max, std::int64_t n, float* out) {
  Lanes total;
  for (std::int64_t i = 0; i < n; ++i) {
    const float e = exp_of(x[i] - max);
    total.lane[i % 16] += e;
    if (out) out[i] = canonical(e);
  }
  return canonical(total.sum());
}

void exp_moments(const float* x, float max, std::int64_t n, float* sums) {
  Lanes total, weighted;
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = max_of(-104.0f, x[i] - max);
    const float e = exp_of(z);
    total.lane[i % 16] += e;
    weighted.lane[i % 16] = fma(z, e, weighted.lane[i % 16]);
  }
  sums[0] = canonical(total.sum());
  sums[1] = canonical(weighted.sum());
}

void lane_maxima(const float* x, std::int64_t n, float* out) {
  for (int j = 0; j < kMaximaLanes; ++j) out[j] = -__builtin_inff();
  for (std::int64_t i = 0; i < n; ++i) {
    out[i % kMaximaLanes] = max_of(x[i], out[i % kMaximaLanes]);
  }
}

std::int64_t collect(const float* x, float least, std::int64_t n, float* out) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (x[i] >= least) out[count++] = x[i];
  }
  return count;
}

}  // namespace

const RowwiseKernels rowwise_scalar = {
    rms_norm, layer_norm, add,     scale,   activate,    activate_mul, sigmoid_mul, softcap,
    rope,     rotate,     row_max, exp_sum, exp_moments, lane_maxima,  collect};

}  // namespace musespark

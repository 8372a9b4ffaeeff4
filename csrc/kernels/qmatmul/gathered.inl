// Activations of a few rows side by side, so that one pointer reaches all of them.
#pragma once

#include <cstdint>

#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// Rows past the last are zeros.
template <int kRows>
struct Gathered {
  static constexpr std::int64_t kDots = kRows * kActGroup;
  const std::int8_t* q;           // [groups][kRows][64]
  const float* scale;             // [groups][kRows]
  const std::int32_t* half_bias;  // [groups][kRows][2]

  Gathered(const QuantizedRows& x, void* to) {
    const std::int64_t groups = x.cols / kActGroup;
    auto* out_q = static_cast<std::int8_t*>(to);
    auto* out_scale = reinterpret_cast<float*>(out_q + groups * kDots);
    auto* out_bias = reinterpret_cast<std::int32_t*>(out_scale + groups * kRows);
    q = out_q;
    scale = out_scale;
    half_bias = out_bias;
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t m = 0; m < kRows; ++m) {
        const bool real = m < x.rows;
        const std::int64_t group = m * groups + g;
        std::int8_t* dots = out_q + g * kDots + m * kActGroup;
        if (real) {
          __builtin_memcpy(dots, x.q + m * x.stride + g * kActGroup, kActGroup);
        } else {
          __builtin_memset(dots, 0, kActGroup);
        }
        out_scale[g * kRows + m] = real ? x.scale[group] : 0.0f;
        for (int h = 0; h < 2; ++h) {
          out_bias[(g * kRows + m) * 2 + h] = real ? x.half_bias[2 * group + h] : 0;
        }
      }
    }
  }
};

}  // namespace
}  // namespace musespark

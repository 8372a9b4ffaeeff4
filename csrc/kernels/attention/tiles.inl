// Register tiles of attention over the vector vocabulary: kRows query rows times kBlocks vectors.
// Each loaded vector of keys (lane = token) or values (lane = channel) serves every row of the
// tile.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

// f(Count<n>) for 1 <= n <= kMost.
template <int kMost, class F>
MS_INLINE void with_count(std::int64_t n, F f) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_count<kMost - 1>(n, f);
  }
  f(Count<kMost>{});
}

// f(row, rows, block, blocks) for tiles that cover rows [0, rows) x blocks [0, blocks).
template <class F>
MS_INLINE void each_tile(std::int64_t rows, std::int64_t blocks, F f) {
  for (std::int64_t r = 0; r < rows;) {
    const std::int64_t left = rows - r;
    const std::int64_t height = left >= 2 * kTileRows || left == kTileRows ? kTileRows
                                : left > kTileRows                         ? (left + 1) / 2
                                                                           : left;
    for (std::int64_t b = 0; b < blocks; b += kTileBlocks) {
      f(r, height, b, blocks - b < kTileBlocks ? blocks - b : kTileBlocks);
    }
    r += height;
  }
}

// A matrix of vectors: vector (step, block) begins at data + step * step_stride + block *
// block_stride.
template <class T>
struct Panel {
  const T* data;
  std::int64_t step_stride;
  std::int64_t block_stride;
  std::int64_t steps;
  // What is read later, fetched meanwhile into the second-level cache: for each vector that is
  // read, this many bytes on. Spread like that over the products, and in ascending order, it keeps
  // memory busy and the few buffers of the first level free.
  const T* fetch = nullptr;
  std::int64_t fetch_step = 0;
};

// out[r][block * 16 + lane] (+)= sum over steps, ascending, of w[r * ldw + step] * panel.
template <int kRows, int kBlocks>
void float_tile(const Panel<float>& panel, const float* w, std::int64_t ldw, float* out,
                std::int64_t ldo, bool accumulate) {
  vf acc[kRows][kBlocks];
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      acc[r][b] = accumulate ? vload(out + r * ldo + b * 16) : vset(0.0f);
    });
  });
  const float* data = panel.data;
  for (std::int64_t step = 0; step < panel.steps; ++step, data += panel.step_stride) {
    vf column[kBlocks];
    unroll<kBlocks>([&](auto b) MS_LAMBDA { column[b] = vload(data + b * panel.block_stride); });
    unroll<kRows>([&](auto r) MS_LAMBDA {
      const vf weight = vset(w[r * ldw + step]);
      unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = vfma(weight, column[b], acc[r][b]); });
    });
  }
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { vstore(out + r * ldo + b * 16, acc[r][b]); });
  });
}

void float_tiles(const Panel<float>& panel, std::int64_t blocks, std::int64_t rows, const float* w,
                 std::int64_t ldw, float* out, std::int64_t ldo, bool accumulate) {
  each_tile(rows, blocks,
            [&](std::int64_t r, std::int64_t height, std::int64_t b, std::int64_t width) {
              const Panel<float> part = {panel.data + b * panel.block_stride, panel.step_stride,
                                         panel.block_stride, panel.steps};
              with_count<kTileRows>(height, [&](auto h) {
                with_count<kTileBlocks>(width, [&](auto n) {
                  float_tile<h.value, n.value>(part, w + r * ldw, ldw, out + r * ldo + b * 16, ldo,
                                               accumulate);
                });
              });
            });
}

// acc[r][b] += sum over steps of four codes times w[r * ldw + 4 * step ..], exact.
template <bool kUnsignedWeights, int kRows, int kBlocks>
MS_INLINE void dot_steps(const Panel<std::uint8_t>& panel, const dot_weight* w, std::int64_t ldw,
                         vi (&acc)[kRows][kBlocks]) {
  const std::uint8_t* data = panel.data;
  const std::uint8_t* fetch = panel.fetch;
  for (std::int64_t step = 0; step < panel.steps; step += kDotSteps) {
    // The count hidden: GCC 12 unrolls sixteen steps of four and spills the accumulators.
    if constexpr (kDotSteps > 1) __asm__("" : "+r"(step));
    unroll<kDotSteps>([&](auto s) MS_LAMBDA {
      vcodes column[kBlocks];
      unroll<kBlocks>([&](auto b) MS_LAMBDA {
        column[b] = load_codes<kUnsignedWeights>(data + b * panel.block_stride);
        __builtin_prefetch(fetch, 0, 2);
        fetch += panel.fetch_step;
      });
      unroll<kRows>([&](auto r) MS_LAMBDA {
        unroll<kBlocks>([&](auto b) MS_LAMBDA {
          acc[r][b] = vdot<kUnsignedWeights, s.value>(acc[r][b], column[b], w + r * ldw + 4 * step);
        });
      });
      data += panel.step_stride;
    });
  }
}

// What the sealed tiles know of each query row.
struct SealedRow {
  float scale;                 // of the quantized query
  std::int32_t bias;           // kKeyBias * sum of the quantized query
  float step;                  // of the page's P: wmax / steps
  std::int32_t value_bias[2];  // kValueBias * sum of each plane of P, where it is not 0
};

// Scores of one sealed page: fma(dot, qscale * kscale, q . mean). key_scale: one float per lane;
// mean_product: one in sixteen floats.
template <int kRows, int kBlocks>
void key_tile(const Panel<std::uint8_t>& panel, const dot_weight* w, std::int64_t ldw,
              const SealedRow* row, const float* key_scale, const float* mean_product,
              float* score) {
  vi acc[kRows][kBlocks];
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = iset(row[r].bias); });
  });
  dot_steps<false>(panel, w, ldw, acc);
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      const vf scale = vmul(vset(row[r].scale), vload(key_scale + b * 16));
      vstore(score + r * kMergeChunk + b * 16,
             vfma(vconvert(acc[r][b]), scale, vset(mean_product[16 * r])));
    });
  });
}

// o += (sum of P * codes) * step. Two planes: the high bytes of P first, then the low ones.
template <int kRows, int kBlocks, int kPlanes>
void value_tile(const Panel<std::uint8_t>& panel, const dot_weight* w, std::int64_t ldw,
                const SealedRow* row, float* o, std::int64_t ldo) {
  vi acc[kRows][kBlocks];
  unroll<kRows>([&](auto r) MS_LAMBDA {
    const vi start = iset(kValueBias == 0 ? 0 : row[r].value_bias[kPlanes - 1]);
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = start; });
  });
  if constexpr (kPlanes == 2) {
    dot_steps<true>(panel, w + kPageTokens, ldw, acc);
    unroll<kRows>([&](auto r) MS_LAMBDA {
      const vi start = iset(kValueBias == 0 ? 0 : row[r].value_bias[0]);
      unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = iadd(ishl<8>(acc[r][b]), start); });
    });
  }
  dot_steps<true>(panel, w, ldw, acc);
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      float* to = o + r * ldo + b * 16;
      vstore(to, vfma(vconvert(acc[r][b]), vset(row[r].step), vload(to)));
    });
  });
}

}  // namespace
}  // namespace musespark

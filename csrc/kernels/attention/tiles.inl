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

}  // namespace
}  // namespace musespark

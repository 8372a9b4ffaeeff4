// Many rows with AMX where a scale holds for 256 columns (q4, q6): the products of four groups add
// up in the result tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/panel_amx.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"

namespace musespark {
namespace {

// --------------------------

// Result tile mi * 2 + bi is that of activations 4 + mi and weights 6 + bi: kM * kB of them.
template <int kM, int kB>
inline void store_results(std::int32_t* to) {
  _tile_stored(0, to, 64);
  if constexpr (kB > 1) _tile_stored(1, to + kTileInts, 64);
  if constexpr (kM > 1) _tile_stored(2, to + 2 * kTileInts, 64);
  if constexpr (kM > 1 && kB > 1) _tile_stored(3, to + 3 * kTileInts, 64);
}

template <int kM, int kB>
inline void load_operands(const std::int8_t* x, const std::int8_t* w) {
  _tile_loadd(4, x, 64);
  _tile_loadd(6, w, 64);
  if constexpr (kB > 1) _tile_loadd(7, w + kPanelCols * kRowBlock, 64);
  if constexpr (kM > 1) _tile_loadd(5, x + kStepGroups * kTileBytes, 64);
}

// The products of `groups` groups of 64 columns; what the result tiles held goes to `before`.
template <int kM, int kB>
inline void block_products(const std::int8_t* x, const std::int8_t* w, std::int64_t groups,
                           std::int32_t* before) {
  load_operands<kM, kB>(x, w);
  if (before) _tile_stored(0, before, 64);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  if constexpr (kB > 1) {
    if (before) _tile_stored(1, before + kTileInts, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 4, 7);
  }
  if constexpr (kM > 1) {
    if (before) _tile_stored(2, before + 2 * kTileInts, 64);
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
  }
  if constexpr (kM > 1 && kB > 1) {
    if (before) _tile_stored(3, before + 3 * kTileInts, 64);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
  for (std::int64_t g = 1; g < groups; ++g) {
    load_operands<kM, kB>(x + g * kTileBytes, w + g * kTileBytes);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kB > 1) _tile_dpbssd(1, 4, 7);
    if constexpr (kM > 1) _tile_dpbssd(2, 5, 6);
    if constexpr (kM > 1 && kB > 1) _tile_dpbssd(3, 5, 7);
  }
}

// The result tiles of a step, scaled and added. step.b: its first row block.
template <int kM, int kB, int kBlocks>
inline void scale_block(const Call& call, const Panel& p, const Step& step) {
  for (int i = 0; i < kM * kB; ++i) {
    const int b = step.b + i % kB;
    const std::int64_t m = step.m[i / kB];
    const std::int32_t* tile = step.tiles + (i / kB * 2 + i % kB) * kTileInts;
    float* sums = step.sums + (i / kB * kBlocks + i % kB) * kTileInts;
    const float* scale = call.a.xq->scale + m * call.groups + p.k0 / kActGroup;
    float* out = call.a.out + m * call.a.ldo + p.out_row + b * kRowBlock;
    const __m512 row = _mm512_loadu_ps(p.row[b]), block = block_scales(p.block[b]);
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < call.rows; ++r) {
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_load_si512(tile + r * 16));
      const __m512 f = _mm512_mul_ps(exact, _mm512_set1_ps(scale[r * call.groups]));
      __m512 total = p.first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * 16);
      total = _mm512_fmadd_ps(f, block, total);
      if (p.last) {
        _mm512_mask_storeu_ps(out + r * call.a.ldo, p.mask[b], _mm512_mul_ps(total, row));
      } else {
        _mm512_store_ps(sums + r * 16, total);
      }
    }
  }
}

// kM tiles of activation rows at a time, `count` of them from tile `first` of the pass on.
template <int kM, int kBlocks>
void rows_of_blocks(const Call& call, const Panel& p, std::int64_t m0, std::int64_t first,
                    std::int64_t count) {
  constexpr int kB = kBlocks > 1 ? 2 : 1;
  constexpr int kKept = kBlockLag + 1;
  const std::int64_t groups = p.cols / kActGroup, steps = count / kM * (kBlocks / kB);
  Step kept[kKept] = {};
  std::int64_t n = 0;
  const auto start = [&](std::int64_t tile) { return call.tile_start(m0 + tile * kTileRows); };
  for (std::int64_t t = first; t < first + count; t += kM) {
    for (int b = 0; b < kBlocks; b += kB, ++n) {
      Step& step = kept[n % kKept];
      step.tiles = call.tiles + n % kKept * 4 * kTileInts;
      for (int i = 0; i < kM; ++i) step.m[i] = start(t + i);
      step.sums = call.sums + (t * kBlocks + b) * kTileInts;
      step.b = b;
      if (p.last) {  // rows of `out` lie pages apart
        for (int i = 0; i < kM; ++i) {
          float* out = call.a.out + step.m[i] * call.a.ldo + p.out_row + b * kRowBlock;
          for (std::int64_t r = 0; r < call.rows; ++r) prefetch(out + r * call.a.ldo);
        }
      }
      const std::int8_t* x = call.x + t * kTileRows * kPanelCols;
      compiler_barrier();
      block_products<kM, kB>(x, p.w8 + b * kPanelCols * kRowBlock, groups,
                             n > 0 ? kept[(n - 1) % kKept].tiles : nullptr);
      compiler_barrier();
      if (n >= kBlockLag) scale_block<kM, kB, kBlocks>(call, p, kept[(n - kBlockLag) % kKept]);
    }
  }
  store_results<kM, kB>(kept[(n - 1) % kKept].tiles);
  compiler_barrier();
  for (std::int64_t i = n < kBlockLag ? 0 : n - kBlockLag; i < steps; ++i) {
    scale_block<kM, kB, kBlocks>(call, p, kept[i % kKept]);
  }
}

}  // namespace
}  // namespace musespark

// Many rows with AMX where a scale holds for 1024 columns (q8g1024h): the codes, as they lie, are
// tiles of weights, and up to sixteen products add up before anything is scaled.
//
// 32 activation rows stay in the first-level cache for all row blocks of a chunk, whose codes come
// from the second; a step is 32 rows x two row blocks x up to 1024 columns. Beside the products of
// a step run the fetching of the next codes and the scaling of the step before last: its sums have
// reached the first-level cache by then.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/blocks_amx.inl"
#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/panel_amx.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"

namespace musespark {
namespace {

// Codes of row blocks that share a second-level cache with 512 rows of activations.
constexpr std::int64_t kWideChunkBytes = 768 * 1024;
constexpr std::int64_t kWideGroups = kBlockQ8Wide / kActGroup;
constexpr std::int64_t kWideSumRows = 32;

// Up to 32 activation rows x two row blocks x 1024 columns.
struct WideStep {
  std::int32_t* tiles;    // [4][16][16], of block_products
  const float* scale[2];  // of the first row of each tile of activations
  float* out[2];          // of that row and the first row block
  const float* row[2];    // scales of the row blocks
  const std::uint16_t* block[2];
  __mmask16 mask[2];
  float* sums;       // [4][16][16], of the columns before
  bool first, last;  // columns of the matrix
};

template <int kM, int kB>
class WideRows {
 public:
  WideRows(const MatmulArgs& a, std::int32_t* tiles, float* sums)
      : a_(a), groups_(a.xq->cols / kActGroup), tiles_(tiles), sums_(sums) {}

  // Row blocks [begin, end), kB at a time, for the kM tiles of rows that begin at `start`.
  void run(const std::int64_t (&start)[2], std::int64_t begin, std::int64_t end) {
    for (std::int64_t g = 0; g < groups_; g += kWideGroups) {
      const std::int64_t count = groups_ - g < kWideGroups ? groups_ - g : kWideGroups;
      for (std::int64_t b = begin; b < end; b += kB) {
        WideStep& step = kept_[n_ % kKept];
        prepare(start, b, (b - begin) / kB, g, &step);
        step.last = g + count == groups_;
        multiply(start, g, count);
        ++n_;
      }
    }
    finish();
  }

 private:
  static constexpr int kKept = kBlockLag + 1;
  static constexpr std::int64_t kQuads = kM * kB * 4;  // of rows of a step's tiles

  void prepare(const std::int64_t (&start)[2], std::int64_t b, std::int64_t place, std::int64_t g,
               WideStep* step) {
    step->tiles = tiles_ + n_ % kKept * 4 * kTileInts;
    for (int i = 0; i < kM; ++i) {
      step->scale[i] = a_.xq->scale + start[i] * groups_ + g;
      step->out[i] = a_.out + start[i] * a_.ldo + b * kRowBlock;
    }
    for (int i = 0; i < kB; ++i) {
      const RowBlock rb = row_block(a_.w, b + i);
      step->row[i] = rb.row;
      step->block[i] = rb.block + g / kWideGroups * kRowBlock;
      step->mask[i] = row_mask(a_.w, b + i);
      codes_[i] = rb.codes + g * kTileBytes;
    }
    step->sums = sums_ + place * 4 * kTileInts;
    step->first = g == 0;
  }

  // The products of step n_; what the result tiles hold is stored, and step n_ - 2 scaled.
  void multiply(const std::int64_t (&start)[2], std::int64_t g, std::int64_t count) {
    const std::int64_t stride = a_.xq->stride;
    const std::int8_t* x[2];
    for (int i = 0; i < kM; ++i) x[i] = a_.xq->q + start[i] * stride + g * kActGroup;
    const WideStep* done = n_ >= kBlockLag ? &kept_[(n_ - kBlockLag) % kKept] : nullptr;
    if (n_ > 0) store_results<kM, kB>(kept_[(n_ - 1) % kKept].tiles);
    _tile_zero(0);
    if constexpr (kB > 1) _tile_zero(1);
    if constexpr (kM > 1) _tile_zero(2);
    if constexpr (kM > 1 && kB > 1) _tile_zero(3);
    std::int64_t quad = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      compiler_barrier();
      _tile_loadd(4, x[0] + i * kActGroup, stride);
      _tile_loadd(6, codes_[0] + i * kTileBytes, 64);
      _tile_dpbssd(0, 4, 6);
      if constexpr (kB > 1) {
        _tile_loadd(7, codes_[1] + i * kTileBytes, 64);
        _tile_dpbssd(1, 4, 7);
      }
      if constexpr (kM > 1) {
        _tile_loadd(5, x[1] + i * kActGroup, stride);
        _tile_dpbssd(2, 5, 6);
      }
      if constexpr (kM > 1 && kB > 1) _tile_dpbssd(3, 5, 7);
      fetch(i);
      for (; done && quad * count < (i + 1) * kQuads; ++quad) scale(*done, quad);
    }
  }

  // The codes kAhead products on; beyond the end of a row block's, those of the next.
  void fetch(std::int64_t i) const {
#pragma GCC unroll 16
    for (int v = 0; v < 16; ++v) {
      for (int b = 0; b < kB; ++b) prefetch(codes_[b] + (i + kAhead) * kTileBytes + 64 * v);
    }
  }
  static constexpr std::int64_t kAhead = 3;

  // Four rows of one tile.
  void scale(const WideStep& step, std::int64_t quad) const {
    const std::int64_t tile = quad / 4, m = tile / kB, b = tile % kB, r0 = quad % 4 * 4;
    const std::int64_t at = (m * 2 + b) * kTileInts + r0 * kRowBlock;
    const __m512 row = _mm512_loadu_ps(step.row[b]), block = block_scales(step.block[b]);
    const float* x = step.scale[m] + r0 * groups_;
    float* out = step.out[m] + r0 * a_.ldo + b * kRowBlock;
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_load_si512(step.tiles + at + r * kRowBlock));
      const __m512 f = _mm512_mul_ps(exact, _mm512_set1_ps(x[r * groups_]));
      __m512 total =
          step.first ? _mm512_setzero_ps() : _mm512_load_ps(step.sums + at + r * kRowBlock);
      total = _mm512_fmadd_ps(f, block, total);
      if (step.last) {
        _mm512_mask_storeu_ps(out + r * a_.ldo, step.mask[b], _mm512_mul_ps(total, row));
      } else {
        _mm512_store_ps(step.sums + at + r * kRowBlock, total);
      }
    }
  }

  void finish() {
    if (n_ == 0) return;
    store_results<kM, kB>(kept_[(n_ - 1) % kKept].tiles);
    compiler_barrier();
    for (std::int64_t i = n_ < kBlockLag ? 0 : n_ - kBlockLag; i < n_; ++i) {
      for (std::int64_t quad = 0; quad < kQuads; ++quad) scale(kept_[i % kKept], quad);
    }
    n_ = 0;
  }

  const MatmulArgs& a_;
  std::int64_t groups_;
  std::int32_t* tiles_;  // [kKept][4][16][16]
  float* sums_;          // [steps of a chunk][4][16][16], where there are more columns than 1024
  const std::uint8_t* codes_[2];
  WideStep kept_[kKept] = {};
  std::int64_t n_ = 0;
};

template <int kM>
void wide_rows(const MatmulArgs& a, const std::int64_t (&start)[2], std::int64_t begin,
               std::int64_t end, std::int32_t* tiles, float* sums) {
  const std::int64_t even = begin + (end - begin) / 2 * 2;
  if (even > begin) WideRows<kM, 2>(a, tiles, sums).run(start, begin, even);
  if (even < end) WideRows<kM, 1>(a, tiles, sums).run(start, even, end);
}

// a.m >= 16.
void matmul_wide(const MatmulArgs& a) {
  auto* tiles = static_cast<std::int32_t*>(a.scratch);
  auto* sums = reinterpret_cast<float*>(tiles + (kBlockLag + 1) * 4 * kTileInts);
  const std::int64_t fit = kWideChunkBytes / (a.xq->cols * kRowBlock) / 2 * 2;
  const std::int64_t chunk = fit > 2 ? fit : 2;
  for (std::int64_t b = a.block_begin; b < a.block_end; b += chunk) {
    const std::int64_t end = a.block_end - b < chunk ? a.block_end : b + chunk;
    for (std::int64_t m = 0; m < a.m; m += 2 * kTileRows) {
      // The last tile overlaps its neighbour rather than end early.
      const std::int64_t last = a.m - kTileRows;
      const std::int64_t start[2] = {m < last ? m : last,
                                     m + kTileRows < last ? m + kTileRows : last};
      if (m + kTileRows < a.m) {
        wide_rows<2>(a, start, b, end, tiles, sums);
      } else {
        wide_rows<1>(a, start, b, end, tiles, sums);
      }
    }
  }
}

}  // namespace
}  // namespace musespark

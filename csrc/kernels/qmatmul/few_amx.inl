// Quantized matmul for 5 to 48 rows with AMX: weights go from memory through a kilobyte of L1 to
// the tiles, so that reading, unpacking, products and scaling of different columns run side by
// side.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

// Step n is 64 columns of one of kBlocks row blocks, which take turns. While it is unpacked, step
// n - 2 is multiplied, the products of n - 3 are stored and those of n - 4 scaled: a tile reads
// what has reached the first-level cache, not what waits in the store buffer, and a product that is
// stored at once would hold up everything behind it. (8192 x 2048 q4, 8 rows, weights in cache,
// Emerald Rapids: multiplied and stored right after unpacking 180 cycles a step, so 130.)
// Activation rows come in kTiles tiles of 16; the last overlaps its neighbour rather than end
// early.
template <WeightFormat kFormat, int kBlocks, int kTiles>
class FewRows {
 public:
  FewRows(const MatmulArgs& a, std::int64_t first_block) : a_(a), first_(first_block) {
    w8_ = static_cast<std::uint8_t*>(a.scratch);
    sums_ = reinterpret_cast<std::int32_t*>(w8_ + kPlaces * kBytes);
    exact_ = sums_ + 2 * kTiles * kHalves * kInts;
    total_ = reinterpret_cast<float*>(exact_ + kBlocks * kTiles * kInts);
    for (int t = 0; t < kTiles; ++t) start_[t] = t + 1 < kTiles || t == 0 ? 16 * t : a.m - 16;
    rows_ = a.m < 16 ? a.m : 16;
    for (int i = 0; i < kBlocks; ++i) rb_[i] = row_block(a.w, first_block + i);
    groups_ = a.xq->cols / kActGroup;
    to_next_ = kBlocks * a.w.row_block_bytes;
    levels_ = code_levels<kFormat, false>(a.w.format);
  }

  void run() {
    for (std::int64_t i = 0; i < 2 * kBlocks * kTiles * kInts; i += 16) {
      _mm512_store_si512(exact_ + i, _mm512_setzero_si512());
    }
    const std::int64_t steps = groups_ * kBlocks;
    const auto is_step = [steps](std::int64_t n) { return n >= 0 && n < steps; };
    for (std::int64_t n = 0; n < steps + 4; ++n) {
      compiler_barrier();
      if (is_step(n - 3)) store(n - 3);
      if (is_step(n - 2)) multiply(n - 2);
      if (is_step(n)) unpack(n);
      if (is_step(n - 4)) scale(n - 4);
    }
    for (int i = 0; i < kBlocks; ++i) {
      for (int t = 0; t < kTiles; ++t) write(i, t);
    }
  }

 private:
  static constexpr std::int64_t kHalves = is_g32(kFormat) ? 2 : 1;  // sums of 32 or of 64 columns
  static_assert(kTiles * kHalves <= 4);
  static constexpr std::int64_t kPlaces = 3;  // for unpacked columns
  static constexpr std::int64_t kBytes = 64 * kRowBlock;
  static constexpr std::int64_t kInts = 16 * kRowBlock;
  static constexpr std::int64_t kGroups = block_cols(kFormat) / kActGroup;  // not of g32

  void unpack(std::int64_t n) {
    const std::int64_t g = n / kBlocks;
    const RowBlock& rb = rb_[n % kBlocks];
    prefetch(reinterpret_cast<const std::uint8_t*>(rb.row) + to_next_ + 64 * g);
    unpack64<kFormat, false>(rb.codes + g * code_stride(kFormat),
                             fetch_distance<kFormat>(g, groups_, to_next_),
                             rb.sub + 2 * kRowBlock * g, levels_, w8_ + n % kPlaces * kBytes);
  }

  // Result registers 0 to 3, [tile][half]; they are immediates.
  void store(std::int64_t n) {
    std::int32_t* to = sums_ + n % 2 * kTiles * kHalves * kInts;
    _tile_stored(0, to, 64);
    if constexpr (kTiles * kHalves > 1) _tile_stored(1, to + kInts, 64);
    if constexpr (kTiles * kHalves > 2) _tile_stored(2, to + 2 * kInts, 64);
    if constexpr (kTiles * kHalves > 3) _tile_stored(3, to + 3 * kInts, 64);
  }

  void multiply(std::int64_t n) {
    const std::int64_t stride = a_.xq->stride;
    const std::int8_t* x = a_.xq->q + n / kBlocks * kActGroup;
    const std::uint8_t* w = w8_ + n % kPlaces * kBytes;
    _tile_loadd(6, w, 64);
    _tile_loadd(4, x, stride);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kHalves == 2) {
      _tile_loadd(7, w + kBytes / 2, 64);
      _tile_loadd(5, x + kActGroup / 2, stride);
      _tile_zero(1);
      _tile_dpbssd(1, 5, 7);
      if constexpr (kTiles > 1) {
        x += start_[1] * stride;
        _tile_loadd(4, x, stride);
        _tile_loadd(5, x + kActGroup / 2, stride);
        _tile_zero(2);
        _tile_zero(3);
        _tile_dpbssd(2, 4, 6);
        _tile_dpbssd(3, 5, 7);
      }
      return;
    }
    if constexpr (kTiles > 1) {
      _tile_loadd(5, x + start_[1] * stride, stride);
      _tile_zero(1);
      _tile_dpbssd(1, 5, 6);
    }
    if constexpr (kTiles > 2) {
      _tile_loadd(4, x + start_[2] * stride, stride);
      _tile_zero(2);
      _tile_dpbssd(2, 4, 6);
    }
  }

  void scale(std::int64_t n) {
    const std::int64_t g = n / kBlocks, i = n % kBlocks;
    for (int t = 0; t < kTiles; ++t) {
      const std::int32_t* sums = sums_ + (n % 2 * kTiles + t) * kHalves * kInts;
      const float* x = a_.xq->scale + start_[t] * groups_ + g;
      const std::int64_t at = (i * kTiles + t) * kInts;
      if constexpr (is_g32(kFormat)) {
        const std::uint16_t* block = rb_[i].block + 2 * g * kRowBlock;
        scale_halves(sums, x, block_scales(block), block_scales(block + kRowBlock), total_ + at);
      } else {
        const bool block_ends = (g + 1) % kGroups == 0 || g + 1 == groups_;
        scale_group(sums, x, exact_ + at, total_ + at,
                    block_ends ? rb_[i].block + g / kGroups * kRowBlock : nullptr);
      }
    }
  }

  void write(int i, int t) {
    const __m512 row = _mm512_loadu_ps(rb_[i].row);
    const __mmask16 mask = row_mask(a_.w, first_ + i);
    const float* total = total_ + (i * kTiles + t) * kInts;
    float* out = a_.out + start_[t] * a_.ldo + (first_ + i) * kRowBlock;
    for (std::int64_t m = 0; m < rows_; ++m) {
      _mm512_mask_storeu_ps(out + m * a_.ldo, mask,
                            _mm512_mul_ps(_mm512_load_ps(total + 16 * m), row));
    }
  }

  void scale_halves(const std::int32_t* sums, const float* x, __m512 block0, __m512 block1,
                    float* total) {
    for (std::int64_t m = 0; m < rows_; ++m) {
      __m512 t = _mm512_mul_ps(as_floats(sums + 16 * m), block0);
      t = _mm512_fmadd_ps(as_floats(sums + kInts + 16 * m), block1, t);
      t = _mm512_fmadd_ps(t, _mm512_set1_ps(x[m * groups_]), _mm512_load_ps(total + 16 * m));
      _mm512_store_ps(total + 16 * m, t);
    }
  }

  // block: scales of the block that ends with this group, else null.
  void scale_group(const std::int32_t* sums, const float* x, std::int32_t* exact, float* total,
                   const std::uint16_t* block) {
    const __m512 scale = block ? block_scales(block) : _mm512_setzero_ps();
    for (std::int64_t m = 0; m < rows_; ++m) {
      __m512i sum = _mm512_load_si512(sums + 16 * m);
      if (kGroups > 1) sum = _mm512_add_epi32(sum, _mm512_load_si512(exact + 16 * m));
      if (block) {
        const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x[m * groups_]));
        _mm512_store_ps(total + 16 * m, _mm512_fmadd_ps(f, scale, _mm512_load_ps(total + 16 * m)));
        sum = _mm512_setzero_si512();
      }
      if (kGroups > 1) _mm512_store_si512(exact + 16 * m, sum);
    }
  }

  static __m512 as_floats(const std::int32_t* p) {
    return _mm512_cvtepi32_ps(_mm512_load_si512(p));
  }

  const MatmulArgs& a_;
  std::int64_t first_, groups_, to_next_;
  std::int64_t rows_;           // of a tile of activations
  std::int64_t start_[kTiles];  // its first row
  RowBlock rb_[kBlocks];
  __m512i levels_;
  std::uint8_t* w8_;     // [kPlaces][16 quads][16 rows][4 k]
  std::int32_t* sums_;   // [2][tiles][halves][16][16]
  std::int32_t* exact_;  // [blocks][tiles][16][16]: over a block
  float* total_;         // the same: over all
};

template <WeightFormat kFormat, int kTiles>
void few_tiles(const MatmulArgs& a) {
  std::int64_t b = a.block_begin;
  for (; b + kStreams <= a.block_end; b += kStreams) FewRows<kFormat, kStreams, kTiles>(a, b).run();
  for (; b < a.block_end; ++b) FewRows<kFormat, 1, kTiles>(a, b).run();
}

// The most rows this is for: result registers for their products, and then panels are as fast.
constexpr std::int64_t few_rows_most(WeightFormat format) { return is_g32(format) ? 32 : 48; }

template <WeightFormat kFormat>
void few_rows_amx(const MatmulArgs& a) {
  if (a.m <= 16) return few_tiles<kFormat, 1>(a);
  if (a.m <= 32) return few_tiles<kFormat, 2>(a);
  if constexpr (!is_g32(kFormat)) few_tiles<kFormat, 3>(a);
}

}  // namespace
}  // namespace musespark

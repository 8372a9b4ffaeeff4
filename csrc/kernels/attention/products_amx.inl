// Products of sealed pages with AMX int8 tiles. The codes of a page lie as a B tile wants them: 16
// vectors of a token block's keys (of a channel block's values), four codes deep, are 64 channels
// (tokens) for 16 outputs. 16 query rows meet four such blocks at once; sums are exact, so they are
// those of a dot instruction.
//
// A step's sums are stored before the products of the next step and scaled after them, so that
// neither unit waits for the other. Where D is no multiple of 64, the last channels have tiles
// of their own depth.
#pragma once

#include <cstdint>

#include "kernels/attention/rows.inl"

namespace musespark {
namespace {

constexpr std::int64_t kDepth = 64;  // channels or tokens of a product
constexpr std::int64_t kMatrixRows = 16;
constexpr std::int64_t kSums = 256;  // of a tile
constexpr std::int64_t kBlocks = 4;  // tiles of a step

// Tile registers 0..3: sums; 4: rows; 5: codes; 6 and 7: codes too, or rows and codes of the last
// channels.
void start_products(const AttendChunkArgs& args) {
  if (args.sealed == nullptr) return;
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  const std::int64_t rows = args.rows < kMatrixRows ? args.rows : kMatrixRows;
  const std::int64_t tail = args.head_dim % kDepth;
  const auto set = [&](int tile, std::int64_t height, std::int64_t bytes) {
    config.rows[tile] = static_cast<std::uint8_t>(height);
    config.row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  };
  for (int i = 0; i < 4; ++i) set(i, rows, 64);
  set(4, rows, kDepth);
  set(5, kDepth / 4, 64);
  set(6, tail == 0 ? kDepth / 4 : rows, tail == 0 ? kDepth : tail);
  set(7, tail == 0 ? kDepth / 4 : tail / 4, 64);
  // GCC 12's intrinsic names only the first bytes as read; this keeps the stores of the rest.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void end_products(const AttendChunkArgs& args) {
  if (args.sealed != nullptr) _tile_release();
}

void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

void store_tiles(std::int32_t* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + kSums, 64);
  _tile_stored(2, to + 2 * kSums, 64);
  _tile_stored(3, to + 3 * kSums, 64);
}

void store_pending(const RowBlock& block) {
  if (block.pending.rows > 0) store_tiles(block.product);
  __asm__ volatile("" ::: "memory");  // what the next tiles read was stored
}

// Sums of rows of signed queries and unsigned keys.
MS_INLINE void key_products(const std::uint8_t* codes, const dot_weight* query, std::int64_t dim) {
  zero_tiles();
  const std::int64_t block = 16 * dim;
  std::int64_t d = 0;
  if (dim % kDepth == 0) {
    for (; d < dim; d += kDepth, codes += 16 * kDepth) {
      _tile_loadd(4, query + d, dim);
      _tile_loadd(5, codes, 64);
      _tile_dpbsud(0, 4, 5);
      _tile_loadd(6, codes + block, 64);
      _tile_dpbsud(1, 4, 6);
      _tile_loadd(7, codes + 2 * block, 64);
      _tile_dpbsud(2, 4, 7);
      _tile_loadd(5, codes + 3 * block, 64);
      _tile_dpbsud(3, 4, 5);
    }
    return;
  }
  for (; d + kDepth <= dim; d += kDepth, codes += 16 * kDepth) {
    _tile_loadd(4, query + d, dim);
    _tile_loadd(5, codes, 64);
    _tile_dpbsud(0, 4, 5);
    _tile_loadd(5, codes + block, 64);
    _tile_dpbsud(1, 4, 5);
    _tile_loadd(5, codes + 2 * block, 64);
    _tile_dpbsud(2, 4, 5);
    _tile_loadd(5, codes + 3 * block, 64);
    _tile_dpbsud(3, 4, 5);
  }
  _tile_loadd(6, query + d, dim);
  _tile_loadd(7, codes, 64);
  _tile_dpbsud(0, 6, 7);
  _tile_loadd(7, codes + block, 64);
  _tile_dpbsud(1, 6, 7);
  _tile_loadd(7, codes + 2 * block, 64);
  _tile_dpbsud(2, 6, 7);
  _tile_loadd(7, codes + 3 * block, 64);
  _tile_dpbsud(3, 6, 7);
}

// Sums of rows of unsigned P and signed values of `blocks` channel blocks; codes: of the first.
MS_INLINE void value_products(const std::uint8_t* codes, const dot_weight* weight, std::int64_t dim,
                              std::int64_t blocks) {
  const std::int64_t stride = 4 * dim;
  zero_tiles();
  _tile_loadd(4, weight, kWeightStride);
  if (dim % kDepth == 0) {
    _tile_loadd(5, codes, stride);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, codes + 64, stride);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(7, codes + 128, stride);
    _tile_dpbusd(2, 4, 7);
    _tile_loadd(5, codes + 192, stride);
    _tile_dpbusd(3, 4, 5);
    return;
  }
  _tile_loadd(5, codes, stride);
  _tile_dpbusd(0, 4, 5);
  if (blocks > 1) {
    _tile_loadd(5, codes + 64, stride);
    _tile_dpbusd(1, 4, 5);
  }
  if (blocks > 2) {
    _tile_loadd(5, codes + 128, stride);
    _tile_dpbusd(2, 4, 5);
  }
  if (blocks > 3) {
    _tile_loadd(5, codes + 192, stride);
    _tile_dpbusd(3, 4, 5);
  }
}

// Scores from the sums of the pending step.
void scale_scores(RowBlock* block) {
  const TileStep step = block->pending;
  const std::int64_t at = step.page * kPageTokens;
  const bool fetch = block->fetch.args && step.row == 0;
  for (std::int64_t i = 0; i < step.rows; ++i) {
    const std::int64_t r = step.row + i;
    const vf u = vset(block->mean_product[16 * r + step.page]);
    const vi bias = iset(block->sealed[r].bias);
    const vf query_scale = vset(block->sealed[r].scale);
    float* score = block->score + r * kMergeChunk + at;
    const std::int32_t* sum = block->product + 16 * i;
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      const vf scale = vmul(query_scale, vload(block->key_scale + at + 16 * b));
      vstore(score + 16 * b, vfma(vconvert(iadd(iload(sum + kSums * b), bias)), scale, u));
    });
    if (fetch) block->fetch.beside(block->dim / step.rows);
  }
}

void finish_scores(RowBlock* block) {
  store_pending(*block);
  scale_scores(block);
  block->pending.rows = 0;
}

void score_rows(RowBlock* block, const std::uint8_t* codes, std::int64_t p, std::int64_t begin,
                std::int64_t end) {
  for (std::int64_t r = begin; r < end; r += kMatrixRows) {
    store_pending(*block);
    key_products(codes, block->query + r * block->dim, block->dim);
    scale_scores(block);
    block->pending = {r, end - r < kMatrixRows ? end - r : kMatrixRows, p, 0, false};
  }
}

// o += the sums of the pending step.
void scale_values(RowBlock* block) {
  const TileStep step = block->pending;
  const bool fetch = block->fetch.args && step.row == 0;
  const std::int64_t left = block->dim / 16 - step.first;
  const std::int64_t blocks = left < kBlocks ? left : kBlocks;
  for (std::int64_t i = 0; i < step.rows; ++i) {
    const std::int64_t r = step.row + i;
    const vf scale = vset(block->step[16 * r + step.page]);
    float* o = block->o + r * block->dim + 16 * step.first;
    const std::int32_t* sum = block->product + 16 * i;
    with_count<kBlocks>(blocks, [&](auto n) MS_LAMBDA {
      unroll<n.value>([&](auto b) MS_LAMBDA {
        vi total = iload(sum + kSums * b);
        if (step.two_planes) total = iadd(ishl<8>(iload(sum + kSums * (kBlocks + b))), total);
        vstore(o + 16 * b, vfma(vconvert(total), scale, vload(o + 16 * b)));
      });
    });
    if (fetch) block->fetch.beside(16 * blocks / step.rows);
  }
}

void finish_values(RowBlock* block) {
  store_pending(*block);
  scale_values(block);
  block->pending.rows = 0;
}

void add_rows(RowBlock* block, const std::uint8_t* codes, std::int64_t p, std::int64_t begin,
              std::int64_t end) {
  const bool two_planes = block->args->chunk == 0 && p == 0;
  const std::int64_t blocks = block->dim / 16;
  for (std::int64_t r = begin; r < end; r += kMatrixRows) {
    const dot_weight* weight = block->weight + r * kWeightStride;
    for (std::int64_t b = 0; b < blocks; b += kBlocks) {
      if (two_planes) {
        finish_values(block);
        value_products(codes + 64 * b, weight + kMergeChunk, block->dim, blocks - b);
        store_tiles(block->product + kBlocks * kSums);
      }
      store_pending(*block);
      value_products(codes + 64 * b, weight + p * kPageTokens, block->dim, blocks - b);
      scale_values(block);
      block->pending = {r, end - r < kMatrixRows ? end - r : kMatrixRows, p, b, two_planes};
    }
  }
}

}  // namespace
}  // namespace musespark

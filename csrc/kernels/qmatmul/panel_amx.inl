// Panels of unpacked weights and tiles of activations, as the AMX kernels for many rows share them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/qmatmul/shared_avx512.inl"
#include "kernels/qmatmul/unpack_avx512.inl"

namespace musespark {
namespace {

constexpr std::int64_t kPanelCols = 256;  // room: 64 rows x 256 bytes = 16 KiB of L1
constexpr int kMaxBlocks = 4;
constexpr std::int64_t kPanels = 2;      // of kMaxBlocks that share a chunk of activations
constexpr std::int64_t kPassRows = 512;  // activation rows per unpacked panel
constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileBytes = 1024;
constexpr int kStepGroups = 4;  // products per step
constexpr std::int64_t kTileInts = 256;
constexpr int kLag = 1;       // steps between products and scaling
constexpr int kBlockLag = 2;  // the same where products add up in the tiles

// Columns of one product, and of a panel.
constexpr int product_cols(WeightFormat format) { return is_g32(format) ? 32 : 64; }
constexpr std::int64_t panel_cols(WeightFormat format) {
  return kStepGroups * product_cols(format);
}

// Tile registers 0..3: results, 4 and 5: `rows` activation rows, 6 and 7: weights; products of
// `depth` columns.
void configure_tiles(std::int64_t rows, int depth) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? depth : 64);
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : depth / 4);
  }
  // GCC 12's intrinsic names only the first bytes as read; this keeps the stores of the rest.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// A chunk of columns of kBlocks row blocks against one pass of activation rows.
struct Panel {
  const std::int8_t* w8;                   // [blocks][kPanelCols / 64][16 quads][16 rows][4 k]
  const std::uint16_t* block[kMaxBlocks];  // block scales from the chunk's first block on
  const float* row[kMaxBlocks];
  __mmask16 mask[kMaxBlocks];
  std::int64_t out_row;
  std::int64_t k0, cols;
  bool first, last;
};

class Call {  // what is the same for a whole call
 public:
  Call(const MatmulArgs& args) : a(args) {
    groups = a.xq->cols / kActGroup;
    rows = a.m < kTileRows ? a.m : kTileRows;
    panel = static_cast<std::int8_t*>(a.scratch);
    x = panel + kMaxBlocks * kPanelCols * kRowBlock;
    tiles = reinterpret_cast<std::int32_t*>(x + kPassRows * kPanelCols);
    sums = reinterpret_cast<float*>(tiles + (kBlockLag + 1) * kStepGroups * kTileInts);
  }

  // First activation row of a tile; the last one overlaps its neighbour rather than end early.
  std::int64_t tile_start(std::int64_t m) const {
    return a.m < kTileRows || m + kTileRows <= a.m ? m : a.m - kTileRows;
  }

  const MatmulArgs& a;
  std::int64_t groups;  // of a whole row
  std::int64_t rows;    // of a tile of activations
  std::int8_t* panel;
  std::int8_t* x;       // [kStepGroups][16][64] of the panel's columns, for each tile of the pass;
                        // where products do not add up, of this and the next tile
  std::int32_t* tiles;  // [lag + 1][4][16][16]
  float* sums;          // of the panel: [m tiles][blocks][16][16]
};

// What the scaling of a step needs.
struct Step {
  std::int32_t* tiles;
  std::int64_t m[2];  // first activation row of each tile of them
  float* sums;        // [16][16]
  int b;              // row block of the panel
};

// The panel's columns of the activation rows from m on, tile by tile.
inline void gather_activations(const Call& call, const Panel& p, std::int64_t m,
                               std::int64_t groups, std::int8_t* to) {
  const std::int64_t stride = call.a.xq->stride;
  const std::int8_t* from = call.a.xq->q + m * stride + p.k0;
  for (std::int64_t r = 0; r < call.rows; ++r) {
#pragma GCC unroll 4
    for (std::int64_t g = 0; g < groups; ++g) {
      _mm512_store_si512(to + g * kTileBytes + r * 64,
                         _mm512_load_si512(from + r * stride + g * 64));
    }
  }
}

// Unpacks the panel; fetches the codes `ahead`, and a line of the next row blocks' scales.
template <WeightFormat kFormat, int kBlocks>
void unpack_panel(const MatmulArgs& a, const RowBlock (&rb)[kBlocks], std::int64_t ahead,
                  std::int8_t* to, Panel* p) {
  const std::int64_t to_next = kBlocks * a.w.row_block_bytes;
  p->w8 = to;
  const __m512i levels = code_levels<kFormat, false>(a.w.format);
  for (int b = 0; b < kBlocks; ++b) {
    p->block[b] = rb[b].block + p->k0 / block_cols(kFormat) * kRowBlock;
  }
  for (std::int64_t k = p->k0; k < p->k0 + p->cols; k += 64) {
    for (int b = 0; b < kBlocks; ++b) {
      prefetch(reinterpret_cast<const std::uint8_t*>(rb[b].row) + to_next + k);
      unpack64<kFormat, false>(
          rb[b].codes + k / 64 * code_stride(kFormat), ahead, rb[b].sub + k / kSubGroup * kRowBlock,
          levels, reinterpret_cast<std::uint8_t*>(to) + (b * kPanelCols + k - p->k0) * kRowBlock);
    }
  }
  compiler_barrier();
}

}  // namespace
}  // namespace musespark

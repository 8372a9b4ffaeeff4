// Moving numbers between rows and columns for packing; included as pack.inl is.
#pragma once

#include <cstdint>

#include "formats/pack_lanes.inl"
#include "formats/pack_steps.h"
#include "formats/weights.h"

namespace musespark {
namespace {

MUSESPARK_INLINE void turn_rows(const float* rows, std::int64_t count, float* columns,
                                std::uint32_t* largest) {
  std::uint32_t most[kRowBlock];
  for (int r = 0; r < kRowBlock; ++r) most[r] = largest[r];
  for (std::int64_t k = 0; k < count; ++k) {
    for (int r = 0; r < kRowBlock; ++r) {
      const float value = rows[r * kPackTile + k];
      std::uint32_t bits;
      __builtin_memcpy(&bits, &value, 4);
      bits &= 0x7fffffffu;
      most[r] = bits > most[r] ? bits : most[r];
      columns[k * kRowBlock + r] = value;
    }
  }
  for (int r = 0; r < kRowBlock; ++r) largest[r] = most[r];
}

// Bytes [row][k] to [k][row], 16 of each. Zipping rows i and i + 8 is a quarter of a transposition:
// it rotates the eight bits of a byte's place by one.
MUSESPARK_INLINE void turn_bytes(const std::int8_t* rows, std::int64_t stride, std::int8_t* to) {
  U8x16 v[kRowBlock], next[kRowBlock];
#pragma GCC unroll 16
  for (int r = 0; r < kRowBlock; ++r) v[r] = load_row_bytes(rows + r * stride);
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = zip_low(v[i], v[i + 8]);
      next[2 * i + 1] = zip_high(v[i], v[i + 8]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRowBlock; ++r) v[r] = next[r];
  }
  __builtin_memcpy(to, v, sizeof v);
}

MUSESPARK_INLINE void turn_integers(const PackTile& tile, std::int64_t count, float* columns,
                                    std::uint32_t* largest) {
  alignas(64) std::int8_t codes[kPackGroup * kRowBlock];
  for (std::int64_t g = 0; g < count / kPackGroup; ++g) {
    turn_bytes(&tile.codes[0][g * kPackGroup], kPackTile, codes);
    for (int lane = 0; lane < kRowBlock; lane += kLanes) {
      const F32 scale = load(&tile.scales[g][lane]), least = load(&tile.leasts[g][lane]);
      I32 most;
      __builtin_memcpy(&most, largest + lane, sizeof most);
      float* to = columns + g * kPackGroup * kRowBlock + lane;
      for (int i = 0; i < kPackGroup; ++i) {
        const F32 value = scale * load_bytes(codes + i * kRowBlock + lane) - least;
        const I32 bits = (I32)magnitude(value);
        most = bits > most ? bits : most;
        store(to + i * kRowBlock, value);
      }
      __builtin_memcpy(largest + lane, &most, sizeof most);
    }
  }
}

// A quad's bytes [k][row], a vector for each k, to [row][k].
MUSESPARK_INLINE void turn_quad(const U8x16* from, std::uint8_t* to) {
  const U8x16 low01 = zip_low(from[0], from[1]), high01 = zip_high(from[0], from[1]);
  const U8x16 low23 = zip_low(from[2], from[3]), high23 = zip_high(from[2], from[3]);
  const U8x16 turned[4] = {zip_low_pairs(low01, low23), zip_high_pairs(low01, low23),
                           zip_low_pairs(high01, high23), zip_high_pairs(high01, high23)};
  __builtin_memcpy(to, turned, sizeof turned);
}

MUSESPARK_INLINE void lay_out_codes(const std::uint8_t* codes, std::int64_t padded_cols, int bits,
                                    std::uint8_t* to) {
  for (std::int64_t chunk = 0; chunk < padded_cols / 64; ++chunk) {
    const std::uint8_t* c = codes + chunk * 64 * kRowBlock;  // quad q at c + 64 * q
    U8x16 joined[4];
    for (int v = 0; v < 16 && bits == 8; ++v) {
      __builtin_memcpy(joined, c + v * 64, sizeof joined);
      turn_quad(joined, to + v * 64);
    }
    for (int v = 0; v < 8 && bits != 8; ++v) {
      for (int i = 0; i < 4; ++i) {
        const std::uint8_t* low = c + v * 64 + i * kRowBlock;
        joined[i] = (load_row_bytes(low) & 15) | load_row_bytes(low + 512) << 4;
      }
      turn_quad(joined, to + v * 64);
    }
    for (int u = 0; u < 4 && bits == 6; ++u) {
      for (int i = 0; i < 4; ++i) {
        const std::uint8_t* high = c + u * 64 + i * kRowBlock;
        joined[i] = (load_row_bytes(high) >> 4 & 3) | (load_row_bytes(high + 256) >> 4 & 3) << 2 |
                    (load_row_bytes(high + 512) >> 4 & 3) << 4 |
                    load_row_bytes(high + 768) >> 4 << 6;
      }
      turn_quad(joined, to + 512 + u * 64);
    }
    to += 128 * bits;
  }
}

}  // namespace
}  // namespace musespark

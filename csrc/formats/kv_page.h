// KV pages: 64 consecutive positions of one layer and one KV head, counted from position 0.
// D is the head dimension rounded up to 16 (padding is zero).
//
// format f32 (tests): one slab, always open.
//     K  [4 token blocks][D][16 tokens] f32        (lane = token: scores need no cross-lane sum)
//     V  [64 tokens][D] f32
//
// format kv8. K (after rope), V and the queries live in a rotated frame: x -> R x with R
// orthonormal (kernels/rowwise/rowwise.h, rotate), so scores are unchanged and outputs are turned
// back once.
//   open page, f16 (clamped to +-65504 on write):
//     K  [4 token blocks][D][16 tokens] f16,  V  [64 tokens][D] f16
//   sealed page, made from the 64 open rows alone:
//     K codes   [4 token blocks][D/4][16 tokens][4 d] uint8     (code + 128, what VPDPBUSD wants)
//     V codes   [16 token quads][D/16][16 d][4 tokens] int8     (lane = d, four tokens deep)
//     K mean    [D] f16
//     K scale   [64] f16        V scale  [64] f16
//   = 64 * 2D + 2D + 256 bytes: 264 bytes a token at D = 128; then padded to 64 bytes.
//
// Sealing, all float32 rne:
//     mean_d  = f16( (sum over j of k[j][d]: 16 lanes from +0, lane = j mod 16, then the tree of
//               kernels/rowwise/rowwise.h) * (1/64) )
//     c[j][d] = k[j][d] - float(mean_d);          amax_j = max_d |c[j][d]|, compared on the bits
//     s_j     = f16(amax_j / 127);  code = clamp(rne(c[j][d] / float(s_j)), -127, 127)
//     s_j = 0 (amax_j below 2^-25 * 127): codes 0.  amax_j not finite: s_j = NaN 0x7e00, codes 0.
//     V the same without a mean.
#pragma once

#include <cstdint>

namespace musespark {

enum class KvFormat : std::uint32_t { f32 = 0, kv8 = 1 };  // reserved: kv8v4 = 2, kv4 = 3

// Everything here has internal linkage: files compiled for an instruction set include it.
static constexpr int kPageTokens = 64;
static constexpr int kMergeChunk = 512;  // positions merged at once
static constexpr int kPagesPerChunk = kMergeChunk / kPageTokens;

// Offsets in bytes of the parts of a sealed kv8 page for padded head dimension d.
struct SealedKv8Layout {
  std::int64_t k_codes, v_codes, k_mean, k_scale, v_scale, bytes;
};
static constexpr SealedKv8Layout sealed_kv8_layout(std::int64_t d) {
  return {0, 64 * d, 128 * d, 130 * d, 130 * d + 128, (130 * d + 256 + 63) / 64 * 64};
}
// Bytes of an open page; the V part begins at half of it.
static constexpr std::int64_t open_page_bytes(KvFormat format, std::int64_t d) {
  return 2 * 64 * d * (format == KvFormat::f32 ? 4 : 2);
}

}  // namespace musespark

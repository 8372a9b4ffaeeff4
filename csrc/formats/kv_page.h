// KV pages: 64 consecutive positions of one layer and one KV head, counted from position 0.
// D is the head dimension rounded up to 16 (padding is zero).
//
// format f32 (tests): one slab, always open.
//     K  [4 token blocks][D][16 tokens] f32        (lane = token: scores need no cross-lane sum)
//     V  [64 tokens][D] f32
//
// formats kv8, kv8v4 and kv4. K (after rope), V and the queries live in a rotated frame: x -> R x
// with R orthonormal (kernels/rowwise/rowwise.h, rotate), so scores are unchanged and outputs are
// turned back once.
//   open page (clamped to +-65504 on write; keys in f32, because f16 would lose what keys with a
//   large mean differ by, before the mean is taken off):
//     K  [4 token blocks][D][16 tokens] f32,  V  [64 tokens][D] f16
//   sealed page, made from the 64 open rows alone; a part that is not named is not there:
//     K codes   kv8, kv8v4: [4 token blocks][D/4][16 tokens][4 d] uint8  (code + 128, for VPDPBUSD)
//               kv4:        [4 token blocks][D/8][16 tokens][4] nibble pairs of channels d, d + 4
//     V codes   kv8:        [16 token quads][D/16][16 d][4 tokens] int8  (lane = d, 4 tokens deep)
//               kv8v4, kv4: [8 pairs of quads][D/16][16 d][4] nibble pairs of tokens j, j + 4
//     K steps   kv4:        [D/32, rounded up][32] nibble pairs of tokens j, j + 32
//     V steps   kv8v4, kv4: the same
//     K mean    [D] f16
//     K scale   [64] f16        V scale  [64] f16
//   The first of a nibble pair is in the low four bits. A dword of nibbles is two dwords of the
//   8-bit layout, so a page is unpacked into it with shifts, masks and 16-bit products.
//
//       bytes of a page, before it is padded to 64        a token at D = 128    64
//     kv8     128 D + 2 D + 256                                          264   134
//     kv8v4    96 D + 32 ceil(D/32) + 2 D + 256                          202   103
//     kv4      64 D + 64 ceil(D/32) + 2 D + 256                          140    72
//
// Sealing, all float32 rne:
//     mean_d  = f16( (sum over j of k[j][d]: 16 lanes from +0, lane = j mod 16, then the tree of
//               kernels/rowwise/rowwise.h) * (1/64) )
//     rows x: c[j][d] = k[j][d] - float(mean_d), and v[j][d];  amax_j = max_d |x[j][d]|, compared
//     on the bits. amax_j not finite: scale NaN 0x7e00. Where the scale is NaN or 0 the values are
//     0: 8-bit codes 0, nibbles 8, steps 0.
//   8 bits:
//     s_j     = f16(amax_j / 127);  code = clamp(rne(x[j][d] / float(s_j)), -127, 127)
//   4 bits: value = scale * m * (nibble - 8 + side), a step m = 1..8 and a side for each 32
//   channels of a row (the last ones may be 16), stored as m - 1 + 8 side. side = 1 (levels -7..8)
//   where the largest magnitude of the 32 belongs to a positive number alone, else 0 (levels
//   -8..7). m (nibble - 8 + side) is a whole number of -64..64: exact in int8.
//     base    = amax_j / 58        (m = 8 reaches the row's largest with level 7.25)
//     m       = clamp(rne(a * (8 / amax_j)), 1, 8), a the group's largest magnitude, or one less
//               (not below 1) where that gives a smaller sum of squared errors: over d ascending
//               from +0, t = base * m, l = rne(clamp(x * (1 / t), levels)), r = fma(-t, l, x),
//               e = fma(r, r, e)
//     s_j     = f16(num / den), the least squares scale of those l: over d ascending from +0,
//               w = m * l, num = fma(x, w, num), den = fma(w, w, den)
//     nibble  = rne(clamp(x * (1 / (float(s_j) * m)), levels)) + 8 - side
#pragma once

#include <cstdint>

namespace musespark {

enum class KvFormat : std::uint32_t { f32 = 0, kv8 = 1, kv8v4 = 2, kv4 = 3 };
static constexpr std::uint32_t kKvFormats = 4;

// Everything here has internal linkage: files compiled for an instruction set include it.
static constexpr int kPageTokens = 64;
static constexpr int kMergeChunk = 512;  // positions merged at once
static constexpr int kPagesPerChunk = kMergeChunk / kPageTokens;
static constexpr int kStepChannels = 32;  // channels of a row that share a step, where in 4 bits
static constexpr int kMostHeadDim = 512;

// What a page is by its place in a sequence. A page's slabs (one for each KV head of each layer)
// have formats of their own; first: positions 0..63, where attention sinks sit, are 8 bits always;
// demoted: a page of a finished thought that was sealed again, all in 4 bits.
enum class KvForm : std::uint8_t { first = 0, body = 1, demoted = 2 };
static constexpr int kKvForms = 3;
static constexpr KvForm form_of_page(std::int64_t page) {
  return page == 0 ? KvForm::first : KvForm::body;
}
// The format that a slab has in pages of a form; `chosen`: that of its layer and KV head.
static constexpr KvFormat slab_format(KvForm form, KvFormat chosen) {
  if (chosen == KvFormat::f32 || form == KvForm::body) return chosen;
  return form == KvForm::first ? KvFormat::kv8 : KvFormat::kv4;
}

static constexpr bool has_4bit_keys(KvFormat format) { return format == KvFormat::kv4; }
static constexpr bool has_4bit_values(KvFormat format) {
  return format == KvFormat::kv8v4 || format == KvFormat::kv4;
}
static constexpr std::int64_t step_groups(std::int64_t d) {
  return (d + kStepChannels - 1) / kStepChannels;
}

// Offsets in bytes of the parts of a sealed page for padded head dimension d. A part that is not
// there is empty: it begins where the next one does.
struct SealedLayout {
  std::int64_t k_codes, v_codes, k_steps, v_steps, k_mean, k_scale, v_scale, bytes;
};
static constexpr SealedLayout sealed_layout(KvFormat format, std::int64_t d) {
  const std::int64_t steps = step_groups(d) * kPageTokens / 2;
  SealedLayout at = {};
  at.v_codes = has_4bit_keys(format) ? 32 * d : 64 * d;
  at.k_steps = at.v_codes + (has_4bit_values(format) ? 32 * d : 64 * d);
  at.v_steps = at.k_steps + (has_4bit_keys(format) ? steps : 0);
  at.k_mean = at.v_steps + (has_4bit_values(format) ? steps : 0);
  at.k_scale = at.k_mean + 2 * d;
  at.v_scale = at.k_scale + 2 * kPageTokens;
  at.bytes = (at.v_scale + 2 * kPageTokens + 63) / 64 * 64;
  return at;
}
// Bytes of a sealed page; 0 for f32, which has none.
static constexpr std::int64_t sealed_page_bytes(KvFormat format, std::int64_t d) {
  return format == KvFormat::f32 ? 0 : sealed_layout(format, d).bytes;
}
// Where the 8-bit codes of slot and channel d lie, in bytes from the first.
static constexpr std::int64_t key_code_at(std::int64_t dim, std::int64_t slot, std::int64_t d) {
  return ((slot / 16 * (dim / 4) + d / 4) * 16 + slot % 16) * 4 + d % 4;
}

static constexpr std::int64_t value_code_at(std::int64_t dim, std::int64_t slot, std::int64_t d) {
  return ((slot / 4 * (dim / 16) + d / 16) * 16 + d % 16) * 4 + slot % 4;
}

// A nibble: its byte, and whether it is the high one.
struct NibbleAt {
  std::int64_t byte;
  bool high;
};

static constexpr NibbleAt key_nibble_at(std::int64_t dim, std::int64_t slot, std::int64_t d) {
  return {((slot / 16 * (dim / 8) + d / 8) * 16 + slot % 16) * 4 + d % 4, d / 4 % 2 == 1};
}

static constexpr NibbleAt value_nibble_at(std::int64_t dim, std::int64_t slot, std::int64_t d) {
  return {((slot / 8 * (dim / 16) + d / 16) * 16 + d % 16) * 4 + slot % 4, slot / 4 % 2 == 1};
}

static constexpr NibbleAt step_at(std::int64_t slot, std::int64_t d) {
  return {d / kStepChannels * 32 + slot % 32, slot / 32 == 1};
}

// m * level of a nibble under its step, as both are stored.
static constexpr std::int32_t four_bit_code(std::int32_t nibble, std::int32_t step) {
  return (step % 8 + 1) * (nibble - 8 + step / 8);
}

// Where a KV head's slab of one layer lies in the sealed pages of one form.
struct SealedSlab {
  KvFormat format;
  std::int64_t offset;  // bytes
};
// Bytes of an open page, and of its K part, behind which the V part begins.
static constexpr std::int64_t open_keys_bytes(std::int64_t d) { return kPageTokens * d * 4; }
static constexpr std::int64_t open_page_bytes(KvFormat format, std::int64_t d) {
  return open_keys_bytes(d) + kPageTokens * d * (format == KvFormat::f32 ? 4 : 2);
}
static_assert(sealed_layout(KvFormat::kv8, 128).bytes == 264 * kPageTokens);
static_assert(sealed_layout(KvFormat::kv8v4, 128).bytes == 202 * kPageTokens);
static_assert(sealed_layout(KvFormat::kv4, 128).bytes == 140 * kPageTokens);

}  // namespace musespark

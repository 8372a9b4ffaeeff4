// Pages element by element, for scalar.cc: where each number lies, and how a page is sealed.
#pragma once

#include <cstdint>

#include "base/half.h"
#include "formats/kv_page.h"
#include "kernels/detail/scalar_math.inl"

namespace musespark {
namespace {

constexpr std::uint32_t kInfinityBits = 0x7f800000u;

// Nearest integer, ties to even, of |x| < 2^22.
std::int32_t round_to_int(float x) {
  return static_cast<std::int32_t>(bits_of(x + 0x1.8p23f) - bits_of(0x1.8p23f));
}

std::uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }

float load_f16(const std::uint8_t* at) {
  return f16_to_f32(static_cast<std::uint16_t>(at[0] | at[1] << 8));
}

void store_f16(std::uint8_t* at, std::uint16_t bits) {
  at[0] = static_cast<std::uint8_t>(bits);
  at[1] = static_cast<std::uint8_t>(bits >> 8);
}

float load_f32(const std::uint8_t* at) {
  float x;
  __builtin_memcpy(&x, at, 4);
  return x;
}

// The tree over 16 lanes; uses them up.
float tree_sum(float* lane) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// Element d of the key (value) at `slot` of an open page; K: [4][D][16], V: [64][D].
float open_key(const std::uint8_t* page, std::int64_t dim, std::int64_t slot, std::int64_t d) {
  return load_f32(page + 4 * ((slot / 16 * dim + d) * 16 + slot % 16));
}

float open_value(KvFormat format, const std::uint8_t* page, std::int64_t dim, std::int64_t slot,
                 std::int64_t d) {
  const std::uint8_t* values = page + open_keys_bytes(dim);
  const std::int64_t at = slot * dim + d;
  return format == KvFormat::f32 ? load_f32(values + 4 * at) : load_f16(values + 2 * at);
}

std::int32_t load_nibble(const std::uint8_t* base, NibbleAt at) {
  return at.high ? base[at.byte] >> 4 : base[at.byte] & 15;
}

void store_nibble(std::uint8_t* base, NibbleAt at, std::int32_t value) {
  const int kept = base[at.byte] & (at.high ? 0x0f : 0xf0);
  base[at.byte] = static_cast<std::uint8_t>(kept | (at.high ? value << 4 : value));
}

// The whole number that times the row's scale is a key's (value's) element, less the mean.
std::int32_t key_code(KvFormat format, const std::uint8_t* page, std::int64_t dim,
                      std::int64_t slot, std::int64_t d) {
  const SealedLayout at = sealed_layout(format, dim);
  if (!has_4bit_keys(format)) return page[at.k_codes + key_code_at(dim, slot, d)] - 128;
  return four_bit_code(load_nibble(page + at.k_codes, key_nibble_at(dim, slot, d)),
                       load_nibble(page + at.k_steps, step_at(slot, d)));
}

std::int32_t value_code(KvFormat format, const std::uint8_t* page, std::int64_t dim,
                        std::int64_t slot, std::int64_t d) {
  const SealedLayout at = sealed_layout(format, dim);
  if (!has_4bit_values(format)) {
    return static_cast<std::int8_t>(page[at.v_codes + value_code_at(dim, slot, d)]);
  }
  return four_bit_code(load_nibble(page + at.v_codes, value_nibble_at(dim, slot, d)),
                       load_nibble(page + at.v_steps, step_at(slot, d)));
}

std::uint32_t largest_magnitude(const float* x, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (magnitude_bits(x[i]) > largest) largest = magnitude_bits(x[i]);
  }
  return largest;
}

// A row as int8 codes -127..127; gives the f16 bits of its scale.
std::uint16_t encode_8bit(const float* x, std::int64_t dim, std::int32_t* code) {
  const std::uint32_t largest = largest_magnitude(x, dim);
  const std::uint16_t bits =
      largest >= kInfinityBits ? kF16CanonicalNan : f32_to_f16(float_of(largest) / 127.0f);
  const float scale = f16_to_f32(bits);
  for (std::int64_t d = 0; d < dim; ++d) {
    code[d] = scale > 0.0f ? round_to_int(max_of(-127.0f, min_of(127.0f, x[d] / scale))) : 0;
  }
  return bits;
}

// Level of x in steps of 1 / inverse: -8..7, or -7..8 on the positive side.
std::int32_t level_of(float x, float inverse, std::int32_t side) {
  const auto low = static_cast<float>(side - 8);
  return round_to_int(max_of(low, min_of(low + 15.0f, x * inverse)));
}

float squared_error(const float* x, std::int64_t n, float t, std::int32_t side) {
  const float inverse = 1.0f / t;
  float e = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float r = fma(-t, static_cast<float>(level_of(x[i], inverse, side)), x[i]);
    e = fma(r, r, e);
  }
  return e;
}

// The step and side of one group of a row whose largest magnitude is amax, as they are stored.
std::int32_t choose_step(const float* x, std::int64_t n, float amax) {
  float highest = 0.0f;
  float lowest = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    highest = max_of(x[i], highest);
    lowest = min_of(x[i], lowest);
  }
  const std::int32_t side = highest > -lowest ? 1 : 0;
  const float a = max_of(highest, -lowest);
  const auto m = static_cast<std::int32_t>(
      max_of(1.0f, min_of(8.0f, static_cast<float>(round_to_int(a * (8.0f / amax))))));
  const std::int32_t less = m > 1 ? m - 1 : 1;
  const float base = amax / 58.0f;
  const bool smaller = squared_error(x, n, base * static_cast<float>(less), side) <
                       squared_error(x, n, base * static_cast<float>(m), side);
  return (smaller ? less : m) - 1 + 8 * side;
}

// A row as nibbles and steps; gives the f16 bits of its scale.
std::uint16_t encode_4bit(const float* x, std::int64_t dim, std::int32_t* nibble,
                          std::int32_t* step) {
  const std::uint32_t largest = largest_magnitude(x, dim);
  const float amax = float_of(largest);
  const bool some = largest > 0 && largest < kInfinityBits;
  float num = 0.0f;
  float den = 0.0f;
  for (std::int64_t d = 0; some && d < dim; d += kStepChannels) {
    const std::int64_t n = dim - d < kStepChannels ? dim - d : kStepChannels;
    std::int32_t& chosen = step[d / kStepChannels];
    chosen = choose_step(x + d, n, amax);
    const auto m = static_cast<float>(chosen % 8 + 1);
    const float inverse = 1.0f / (amax / 58.0f * m);
    for (std::int64_t i = d; i < d + n; ++i) {
      const float w = m * static_cast<float>(level_of(x[i], inverse, chosen / 8));
      num = fma(x[i], w, num);
      den = fma(w, w, den);
    }
  }
  const std::uint16_t bits = largest >= kInfinityBits ? kF16CanonicalNan
                             : some                   ? f32_to_f16(num / den)
                                                      : std::uint16_t{0};
  const float scale = f16_to_f32(bits);
  for (std::int64_t d = 0; d < dim; ++d) {
    std::int32_t& chosen = step[d / kStepChannels];
    if (!(scale > 0.0f)) chosen = 0;
    const float inverse = 1.0f / (scale * static_cast<float>(chosen % 8 + 1));
    nibble[d] = scale > 0.0f ? level_of(x[d], inverse, chosen / 8) + 8 - chosen / 8 : 8;
  }
  return bits;
}

void store_means(KvFormat format, std::int64_t dim, const std::uint8_t* open,
                 std::uint8_t* sealed) {
  for (std::int64_t d = 0; d < dim; ++d) {
    float lane[16] = {};
    for (std::int64_t j = 0; j < kPageTokens; ++j) lane[j % 16] += open_key(open, dim, j, d);
    const float mean = tree_sum(lane) * (1.0f / kPageTokens);
    store_f16(sealed + sealed_layout(format, dim).k_mean + 2 * d, f32_to_f16(mean));
  }
}

void seal_key(KvFormat format, std::int64_t dim, std::int64_t slot, const float* x,
              std::uint8_t* sealed) {
  const SealedLayout at = sealed_layout(format, dim);
  std::int32_t code[kMostHeadDim];
  std::int32_t step[kMostHeadDim / kStepChannels];
  if (!has_4bit_keys(format)) {
    store_f16(sealed + at.k_scale + 2 * slot, encode_8bit(x, dim, code));
    for (std::int64_t d = 0; d < dim; ++d) {
      sealed[at.k_codes + key_code_at(dim, slot, d)] = static_cast<std::uint8_t>(code[d] + 128);
    }
    return;
  }
  store_f16(sealed + at.k_scale + 2 * slot, encode_4bit(x, dim, code, step));
  for (std::int64_t d = 0; d < dim; ++d) {
    store_nibble(sealed + at.k_codes, key_nibble_at(dim, slot, d), code[d]);
    store_nibble(sealed + at.k_steps, step_at(slot, d), step[d / kStepChannels]);
  }
}

void seal_value(KvFormat format, std::int64_t dim, std::int64_t slot, const float* x,
                std::uint8_t* sealed) {
  const SealedLayout at = sealed_layout(format, dim);
  std::int32_t code[kMostHeadDim];
  std::int32_t step[kMostHeadDim / kStepChannels];
  if (!has_4bit_values(format)) {
    store_f16(sealed + at.v_scale + 2 * slot, encode_8bit(x, dim, code));
    for (std::int64_t d = 0; d < dim; ++d) {
      sealed[at.v_codes + value_code_at(dim, slot, d)] = static_cast<std::uint8_t>(code[d]);
    }
    return;
  }
  store_f16(sealed + at.v_scale + 2 * slot, encode_4bit(x, dim, code, step));
  for (std::int64_t d = 0; d < dim; ++d) {
    store_nibble(sealed + at.v_codes, value_nibble_at(dim, slot, d), code[d]);
    store_nibble(sealed + at.v_steps, step_at(slot, d), step[d / kStepChannels]);
  }
}

}  // namespace
}  // namespace musespark

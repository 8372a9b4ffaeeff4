#include "formats/kv_page_codec.h"

#include <cstring>

#include "base/half.h"

namespace musespark {
namespace {

float load_f16(const std::uint8_t* at) {
  return f16_to_f32(static_cast<std::uint16_t>(at[0] | at[1] << 8));
}

float load_f32(const std::uint8_t* at) {
  float x;
  std::memcpy(&x, at, 4);
  return x;
}

std::int32_t load_nibble(const std::uint8_t* base, NibbleAt at) {
  return at.high ? base[at.byte] >> 4 : base[at.byte] & 15;
}

std::int32_t four_bits(const std::uint8_t* codes, NibbleAt code, const std::uint8_t* steps,
                       NibbleAt step) {
  return four_bit_code(load_nibble(codes, code), load_nibble(steps, step));
}

}  // namespace

void decode_sealed(KvFormat format, std::int64_t dim, const std::uint8_t* sealed, float* keys,
                   float* mean, float* values) {
  const SealedLayout at = sealed_layout(format, dim);
  for (std::int64_t d = 0; d < dim; ++d) mean[d] = load_f16(sealed + at.k_mean + 2 * d);
  for (std::int64_t j = 0; j < kPageTokens; ++j) {
    const float key_scale = load_f16(sealed + at.k_scale + 2 * j);
    const float value_scale = load_f16(sealed + at.v_scale + 2 * j);
    for (std::int64_t d = 0; d < dim; ++d) {
      const NibbleAt step = step_at(j, d);
      const std::int32_t key =
          has_4bit_keys(format)
              ? four_bits(sealed + at.k_codes, key_nibble_at(dim, j, d), sealed + at.k_steps, step)
              : sealed[at.k_codes + key_code_at(dim, j, d)] - 128;
      const std::int32_t value =
          has_4bit_values(format)
              ? four_bits(sealed + at.v_codes, value_nibble_at(dim, j, d), sealed + at.v_steps,
                          step)
              : static_cast<std::int8_t>(sealed[at.v_codes + value_code_at(dim, j, d)]);
      keys[j * dim + d] = static_cast<float>(key) * key_scale;
      values[j * dim + d] = static_cast<float>(value) * value_scale;
    }
  }
}

void decode_open(KvFormat format, std::int64_t dim, const std::uint8_t* open, float* keys,
                 float* values) {
  const std::uint8_t* v = open + open_keys_bytes(dim);
  for (std::int64_t j = 0; j < kPageTokens; ++j) {
    for (std::int64_t d = 0; d < dim; ++d) {
      keys[j * dim + d] = load_f32(open + 4 * ((j / 16 * dim + d) * 16 + j % 16));
      const std::int64_t at = j * dim + d;
      values[at] = format == KvFormat::f32 ? load_f32(v + 4 * at) : load_f16(v + 2 * at);
    }
  }
}

}  // namespace musespark

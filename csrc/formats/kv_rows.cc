#include "formats/kv_rows.h"

#include <cstring>

#include "base/half.h"

namespace musespark {
namespace {

float half_at(const std::uint8_t* from, std::int64_t index) {
  std::uint16_t bits;
  std::memcpy(&bits, from + 2 * index, 2);
  return f16_to_f32(bits);
}

float element(KvFormat format, const std::uint8_t* from, std::int64_t index) {
  if (format != KvFormat::f32) return half_at(from, index);
  float value;
  std::memcpy(&value, from + 4 * index, 4);
  return value;
}

int nibble(std::uint8_t byte, bool high) { return high ? byte >> 4 : byte & 15; }

// The whole number of a 4-bit value: step m = 1..8 in the low three bits, the side above them.
int times_step(int code, int step) { return (step % 8 + 1) * (code - 8 + step / 8); }

int step_of(const std::uint8_t* steps, std::int64_t slot, std::int64_t channel) {
  return nibble(steps[channel / kStepChannels * 32 + slot % 32], slot >= 32);
}

}  // namespace

void load_open_row(KvFormat format, std::int64_t d, const std::uint8_t* open, std::int64_t slot,
                   float* k, float* v) {
  const std::uint8_t* values = open + open_page_bytes(format, d) / 2;
  for (std::int64_t i = 0; i < d; ++i) {
    k[i] = element(format, open, (slot / 16 * d + i) * 16 + slot % 16);
    v[i] = element(format, values, slot * d + i);
  }
}

void load_sealed_row(KvFormat format, std::int64_t d, const std::uint8_t* sealed, std::int64_t slot,
                     float* k, float* v) {
  const SealedLayout at = sealed_layout(format, d);
  const float k_scale = half_at(sealed + at.k_scale, slot);
  const float v_scale = half_at(sealed + at.v_scale, slot);
  for (std::int64_t i = 0; i < d; ++i) {
    int code;
    if (has_4bit_keys(format)) {
      const std::int64_t byte = ((slot / 16 * (d / 8) + i / 8) * 16 + slot % 16) * 4 + i % 4;
      code = times_step(nibble(sealed[at.k_codes + byte], i % 8 >= 4),
                        step_of(sealed + at.k_steps, slot, i));
    } else {
      const std::int64_t byte = ((slot / 16 * (d / 4) + i / 4) * 16 + slot % 16) * 4 + i % 4;
      code = sealed[at.k_codes + byte] - 128;
    }
    k[i] = half_at(sealed + at.k_mean, i) + k_scale * static_cast<float>(code);
    if (has_4bit_values(format)) {
      const std::int64_t byte = ((slot / 8 * (d / 16) + i / 16) * 16 + i % 16) * 4 + slot % 4;
      code = times_step(nibble(sealed[at.v_codes + byte], slot % 8 >= 4),
                        step_of(sealed + at.v_steps, slot, i));
    } else {
      const std::int64_t byte = ((slot / 4 * (d / 16) + i / 16) * 16 + i % 16) * 4 + slot % 4;
      code = static_cast<std::int8_t>(sealed[at.v_codes + byte]);
    }
    v[i] = v_scale * static_cast<float>(code);
  }
}

}  // namespace musespark

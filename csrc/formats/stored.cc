#include "formats/stored.h"

#include <cstring>
#include <iterator>

#include "base/errors.h"
#include "base/half.h"
#include "formats/weights.h"

namespace musespark {
namespace {

using Byte = std::uint8_t;

float read_f16(const Byte* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, 2);
  return f16_to_f32(bits);
}

// ---- plain floats -----------------------------------------------------------------------------

void decode_f32(const Byte* from, std::int64_t count, float* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
}

void decode_f16(const Byte* from, std::int64_t count, float* to) {
  f16_to_f32(reinterpret_cast<const std::uint16_t*>(from), to, count);
}

void decode_bf16(const Byte* from, std::int64_t count, float* to) {
  bf16_to_f32(reinterpret_cast<const std::uint16_t*>(from), to, count);
}

// ---- sixteen bytes at a time ------------------------------------------------------------------

typedef std::uint8_t Bytes __attribute__((vector_size(16)));
typedef std::uint64_t Words __attribute__((vector_size(16)));

Bytes read_bytes(const Byte* at) {
  Bytes bytes;
  std::memcpy(&bytes, at, 16);
  return bytes;
}

// The bits of `mask` above `shift` of each byte; what a byte gets from the next one is above them.
Bytes bits_of(Bytes bytes, int shift, Byte mask) { return (Bytes)((Words)bytes >> shift) & mask; }

// Bit i of two bytes as 16 or 0 in byte i.
Bytes sixteen_where_set(const Byte* bits) {
  const Words both = {bits[0] * 0x0101010101010101u, bits[1] * 0x0101010101010101u};
  const Bytes alone = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes)(((Bytes)both & alone) != 0) & 16;
}

// Where a block's integers go.
struct Out : StoredIntegers {
  void put(int k, Bytes bytes) const { std::memcpy(codes + k, &bytes, 16); }

  void group(int g, float scale, float least = 0.0f) const {
    scales[g * stride] = scale;
    leasts[g * stride] = least;
  }

  void groups_of_32(int g, float scale, float least = 0.0f) const {
    group(2 * g, scale, least);
    group(2 * g + 1, scale, least);
  }
};

// ---- blocks of 32 -----------------------------------------------------------------------------

void levels_32(const Byte* q, const std::int8_t (&levels)[16], std::int8_t* to) {
  for (int i = 0; i < 16; ++i) {
    to[i] = levels[q[i] & 15];
    to[16 + i] = levels[q[i] >> 4];
  }
}

Bytes low_nibbles(const Byte* q) { return bits_of(read_bytes(q), 0, 15); }
Bytes high_nibbles(const Byte* q) { return bits_of(read_bytes(q), 4, 15); }

void block_q4_0(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b));
  to.put(0, low_nibbles(b + 2) - 8);
  to.put(16, high_nibbles(b + 2) - 8);
}

void block_q4_1(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b), -read_f16(b + 2));
  to.put(0, low_nibbles(b + 4));
  to.put(16, high_nibbles(b + 4));
}

void block_q5_0(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b));
  to.put(0, (low_nibbles(b + 6) | sixteen_where_set(b + 2)) - 16);
  to.put(16, (high_nibbles(b + 6) | sixteen_where_set(b + 4)) - 16);
}

void block_q5_1(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b), -read_f16(b + 2));
  to.put(0, low_nibbles(b + 8) | sixteen_where_set(b + 4));
  to.put(16, high_nibbles(b + 8) | sixteen_where_set(b + 6));
}

void block_q8_0(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b));
  std::memcpy(to.codes, b + 2, 32);
}

void block_iq4_nl(const Byte* b, const Out& to) {
  to.groups_of_32(0, read_f16(b));
  levels_32(b + 2, kQ4Level, to.codes);
}

void block_mxfp4(const Byte* b, const Out& to) {
  const std::uint32_t e = b[0];  // half of 2^(e - 127): kE2m1Level holds doubled values
  const std::uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
  float d;
  std::memcpy(&d, &bits, 4);
  to.groups_of_32(0, d);
  levels_32(b + 1, kE2m1Level, to.codes);
}

// ---- blocks of 256 ----------------------------------------------------------------------------

void block_q2_k(const Byte* b, const Out& to) {
  const Byte* q = b + 16;
  const float d = read_f16(b + 80), m = read_f16(b + 82);
  for (int g = 0; g < 16; ++g) {
    to.group(g, d * static_cast<float>(b[g] & 15), m * static_cast<float>(b[g] >> 4));
  }
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    to.put(g * 16, bits_of(read_bytes(q + g / 8 * 32 + g % 2 * 16), g % 8 / 2 * 2, 3));
  }
}

void block_q3_k(const Byte* b, const Out& to) {
  const Byte *h = b, *q = b + 32, *s = b + 96;
  const float d = read_f16(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = s[g % 8] >> (g / 8 * 4) & 15;
    const int high = s[8 + g % 4] >> (g / 4 * 2) & 3;
    to.group(g, d * static_cast<float>((low | high << 4) - 32));
  }
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const Bytes low = bits_of(read_bytes(q + g / 8 * 32 + g % 2 * 16), g % 8 / 2 * 2, 3);
    to.put(g * 16, (low | bits_of(read_bytes(h + g % 2 * 16), g / 2, 1) << 2) - 4);
  }
}

// The scales of the twelve bytes that q4_k and q5_k share.
void groups_k(const Byte* b, const Out& to) {
  const float d = read_f16(b), m = read_f16(b + 2);
  const Byte* s = b + 4;
  for (int g = 0; g < 8; ++g) {
    int scale, least;
    if (g < 4) {
      scale = s[g] & 63;
      least = s[4 + g] & 63;
    } else {
      scale = (s[4 + g] & 15) | s[g - 4] >> 6 << 4;
      least = s[4 + g] >> 4 | s[g] >> 6 << 4;
    }
    to.groups_of_32(g, d * static_cast<float>(scale), m * static_cast<float>(least));
  }
}

void block_q4_k(const Byte* b, const Out& to) {
  const Byte* q = b + 16;
  groups_k(b, to);
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    to.put(g * 16, bits_of(read_bytes(q + g / 4 * 32 + g % 2 * 16), g % 4 / 2 * 4, 15));
  }
}

void block_q5_k(const Byte* b, const Out& to) {
  const Byte *h = b + 16, *q = b + 48;
  groups_k(b, to);
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const Bytes low = bits_of(read_bytes(q + g / 4 * 32 + g % 2 * 16), g % 4 / 2 * 4, 15);
    to.put(g * 16, low | bits_of(read_bytes(h + g % 2 * 16), g / 2, 1) << 4);
  }
}

void block_q6_k(const Byte* b, const Out& to) {
  const Byte *q = b, *h = b + 128, *s = b + 192;
  const float d = read_f16(b + 208);
  for (int g = 0; g < 16; ++g) {
    to.group(g, d * static_cast<float>(static_cast<std::int8_t>(s[g])));
  }
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g) {
    const Bytes low = bits_of(read_bytes(q + g / 8 * 64 + g % 4 * 16), g % 8 / 4 * 4, 15);
    const Bytes high = bits_of(read_bytes(h + g / 8 * 32 + g % 2 * 16), g % 8 / 2 * 2, 3);
    to.put(g * 16, (low | high << 4) - 32);
  }
}

float scale_iq4_xs(const Byte* b, int g) {
  std::uint16_t high;
  std::memcpy(&high, b + 2, 2);
  const int code = (b[4 + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4;
  return read_f16(b) * static_cast<float>(code - 32);
}

void block_iq4_xs(const Byte* b, const Out& to) {
  for (int g = 0; g < 8; ++g) {
    to.groups_of_32(g, scale_iq4_xs(b, g));
    levels_32(b + 8 + 16 * g, kQ4Level, to.codes + 32 * g);
  }
}

// ---- the table --------------------------------------------------------------------------------

template <void (*block)(const Byte*, const Out&), int bytes, int values>
void decode_blocks(const Byte* from, std::int64_t blocks, const StoredIntegers& to) {
  Out out{to};
  for (std::int64_t i = 0; i < blocks; ++i) {
    block(from + i * bytes, out);
    out.codes += values;
    out.scales += values / kStoredGroup * out.stride;
    out.leasts += values / kStoredGroup * out.stride;
  }
}

struct Entry {
  StoredTypeInfo info;
  void (*floats)(const Byte* from, std::int64_t count, float* to);
  void (*integers)(const Byte* from, std::int64_t blocks, const StoredIntegers& to);
};

constexpr Entry plain(StoredType type, const char* name, std::int64_t bytes,
                      void (*floats)(const Byte*, std::int64_t, float*)) {
  return {{type, name, 1, bytes}, floats, nullptr};
}

template <void (*block)(const Byte*, const Out&), int bytes, int values>
constexpr Entry entry(StoredType type, const char* name) {
  return {{type, name, values, bytes}, nullptr, decode_blocks<block, bytes, values>};
}

constexpr Entry kTypes[] = {
    plain(StoredType::f32, "f32", 4, decode_f32),
    plain(StoredType::f16, "f16", 2, decode_f16),
    plain(StoredType::bf16, "bf16", 2, decode_bf16),
    entry<block_q4_0, 18, 32>(StoredType::q4_0, "q4_0"),
    entry<block_q4_1, 20, 32>(StoredType::q4_1, "q4_1"),
    entry<block_q5_0, 22, 32>(StoredType::q5_0, "q5_0"),
    entry<block_q5_1, 24, 32>(StoredType::q5_1, "q5_1"),
    entry<block_q8_0, 34, 32>(StoredType::q8_0, "q8_0"),
    entry<block_iq4_nl, 18, 32>(StoredType::iq4_nl, "iq4_nl"),
    entry<block_mxfp4, 17, 32>(StoredType::mxfp4, "mxfp4"),
    entry<block_q2_k, 84, 256>(StoredType::q2_k, "q2_k"),
    entry<block_q3_k, 110, 256>(StoredType::q3_k, "q3_k"),
    entry<block_q4_k, 144, 256>(StoredType::q4_k, "q4_k"),
    entry<block_q5_k, 176, 256>(StoredType::q5_k, "q5_k"),
    entry<block_q6_k, 210, 256>(StoredType::q6_k, "q6_k"),
    entry<block_iq4_xs, 136, 256>(StoredType::iq4_xs, "iq4_xs"),
};

const Entry& entry_of(StoredType type) {
  const auto index = static_cast<std::uint32_t>(type);
  if (index >= std::size(kTypes)) {
    throw InvalidRequest("stored type: " + std::to_string(index) + " is not known");
  }
  return kTypes[index];
}

}  // namespace

const StoredTypeInfo& stored_type_info(StoredType type) { return entry_of(type).info; }

const StoredTypeInfo& stored_type_from_name(const std::string& name) {
  std::string known;
  for (const Entry& one : kTypes) {
    if (name == one.info.name) return one.info;
    known += (known.empty() ? "" : ", ") + std::string(one.info.name);
  }
  throw InvalidRequest("dtype: '" + name + "' is not one of " + known);
}

void decode_integers(StoredType type, const std::uint8_t* from, std::int64_t blocks,
                     const StoredIntegers& to) {
  entry_of(type).integers(from, blocks, to);
}

void decode_stored(StoredType type, const std::uint8_t* from, std::int64_t blocks, float* to) {
  const Entry& entry = entry_of(type);
  if (entry.floats != nullptr) return entry.floats(from, blocks, to);
  std::int8_t codes[256];
  float scales[256 / kStoredGroup], leasts[256 / kStoredGroup];
  for (std::int64_t i = 0; i < blocks; ++i, to += entry.info.values) {
    entry.integers(from + i * entry.info.bytes, 1, {codes, scales, leasts, 1});
    for (std::int64_t k = 0; k < entry.info.values; ++k) {
      const std::int64_t g = k / kStoredGroup;
      to[k] = scales[g] * static_cast<float>(codes[k]) - leasts[g];
    }
  }
}

bool iq4_xs_to_iq4_nl(const std::uint8_t* from, std::int64_t blocks, std::uint8_t* to) {
  constexpr std::uint16_t kInfinity = 0x7c00;
  for (std::int64_t i = 0; i < blocks; ++i, from += 136) {
    for (int g = 0; g < 8; ++g, to += 18) {
      const std::uint16_t scale = f32_to_f16(scale_iq4_xs(from, g));
      if ((scale & kInfinity) == kInfinity) return false;
      std::memcpy(to, &scale, 2);
      std::memcpy(to + 2, from + 8 + 16 * g, 16);
    }
  }
  return true;
}

}  // namespace musespark

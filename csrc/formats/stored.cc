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

// ---- blocks of 32 -----------------------------------------------------------------------------

template <class Value>
void nibbles_32(const Byte* q, float* to, Value value) {
  for (int i = 0; i < 16; ++i) to[i] = value(q[i] & 15, i);
  for (int i = 0; i < 16; ++i) to[16 + i] = value(q[i] >> 4, 16 + i);
}

void block_q4_0(const Byte* b, float* to) {
  const float d = read_f16(b);
  nibbles_32(b + 2, to, [d](int q, int) { return d * static_cast<float>(q - 8); });
}

void block_q4_1(const Byte* b, float* to) {
  const float d = read_f16(b), m = read_f16(b + 2);
  nibbles_32(b + 4, to, [d, m](int q, int) { return d * static_cast<float>(q) + m; });
}

void block_q5_0(const Byte* b, float* to) {
  const float d = read_f16(b);
  std::uint32_t h;
  std::memcpy(&h, b + 2, 4);
  nibbles_32(b + 6, to, [d, h](int q, int k) {
    const int code = q | static_cast<int>(h >> k & 1) << 4;
    return d * static_cast<float>(code - 16);
  });
}

void block_q5_1(const Byte* b, float* to) {
  const float d = read_f16(b), m = read_f16(b + 2);
  std::uint32_t h;
  std::memcpy(&h, b + 4, 4);
  nibbles_32(b + 8, to, [d, m, h](int q, int k) {
    const int code = q | static_cast<int>(h >> k & 1) << 4;
    return d * static_cast<float>(code) + m;
  });
}

void block_q8_0(const Byte* b, float* to) {
  const float d = read_f16(b);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(static_cast<std::int8_t>(b[2 + i]));
}

void block_iq4_nl(const Byte* b, float* to) {
  const float d = read_f16(b);
  nibbles_32(b + 2, to, [d](int q, int) { return d * static_cast<float>(kQ4Level[q]); });
}

void block_mxfp4(const Byte* b, float* to) {
  const std::uint32_t e = b[0];  // half of 2^(e - 127): kE2m1Level holds doubled values
  const std::uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
  float d;
  std::memcpy(&d, &bits, 4);
  nibbles_32(b + 1, to, [d](int q, int) { return d * static_cast<float>(kE2m1Level[q]); });
}

// ---- blocks of 256 ----------------------------------------------------------------------------

void block_q2_k(const Byte* b, float* to) {
  const Byte* q = b + 16;
  const float d = read_f16(b + 80), m = read_f16(b + 82);
  for (int g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(b[g] & 15);
    const float least = m * static_cast<float>(b[g] >> 4);
    const Byte* bytes = q + g / 8 * 32 + g % 2 * 16;
    const int shift = g % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      to[g * 16 + i] = scale * static_cast<float>(bytes[i] >> shift & 3) - least;
    }
  }
}

void block_q3_k(const Byte* b, float* to) {
  const Byte *h = b, *q = b + 32, *s = b + 96;
  const float d = read_f16(b + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = s[g % 8] >> (g / 8 * 4) & 15;
    const int high = s[8 + g % 4] >> (g / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const Byte* bytes = q + g / 8 * 32 + g % 2 * 16;
    const Byte* mask = h + g % 2 * 16;
    const int shift = g % 8 / 2 * 2, bit = g / 2;
    for (int i = 0; i < 16; ++i) {
      const int code = (bytes[i] >> shift & 3) - (mask[i] >> bit & 1 ? 0 : 4);
      to[g * 16 + i] = scale * static_cast<float>(code);
    }
  }
}

struct ScaleMin {
  float scale, least;
};

// Group g of the twelve bytes that q4_k and q5_k share.
ScaleMin scale_min_k(const Byte* s, int g, float d, float m) {
  int scale, least;
  if (g < 4) {
    scale = s[g] & 63;
    least = s[4 + g] & 63;
  } else {
    scale = (s[4 + g] & 15) | s[g - 4] >> 6 << 4;
    least = s[4 + g] >> 4 | s[g] >> 6 << 4;
  }
  return {d * static_cast<float>(scale), m * static_cast<float>(least)};
}

void block_q4_k(const Byte* b, float* to) {
  const float d = read_f16(b), m = read_f16(b + 2);
  const Byte* q = b + 16;
  for (int g = 0; g < 8; ++g) {
    const ScaleMin at = scale_min_k(b + 4, g, d, m);
    const Byte* bytes = q + g / 2 * 32;
    const int shift = g % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      to[g * 32 + i] = at.scale * static_cast<float>(bytes[i] >> shift & 15) - at.least;
    }
  }
}

void block_q5_k(const Byte* b, float* to) {
  const float d = read_f16(b), m = read_f16(b + 2);
  const Byte *h = b + 16, *q = b + 48;
  for (int g = 0; g < 8; ++g) {
    const ScaleMin at = scale_min_k(b + 4, g, d, m);
    const Byte* bytes = q + g / 2 * 32;
    const int shift = g % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int code = (bytes[i] >> shift & 15) | (h[i] >> g & 1) << 4;
      to[g * 32 + i] = at.scale * static_cast<float>(code) - at.least;
    }
  }
}

void block_q6_k(const Byte* b, float* to) {
  const Byte *q = b, *h = b + 128, *s = b + 192;
  const float d = read_f16(b + 208);
  for (int g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(s[g]));
    const Byte* bytes = q + g / 8 * 64 + g % 4 * 16;
    const Byte* high = h + g / 8 * 32 + g % 2 * 16;
    const int shift = g % 8 / 4 * 4, two = g % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) {
      const int code = (bytes[i] >> shift & 15) | (high[i] >> two & 3) << 4;
      to[g * 16 + i] = scale * static_cast<float>(code - 32);
    }
  }
}

float scale_iq4_xs(const Byte* b, int g) {
  std::uint16_t high;
  std::memcpy(&high, b + 2, 2);
  const int code = (b[4 + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4;
  return read_f16(b) * static_cast<float>(code - 32);
}

void block_iq4_xs(const Byte* b, float* to) {
  for (int g = 0; g < 8; ++g) {
    const float scale = scale_iq4_xs(b, g);
    nibbles_32(b + 8 + 16 * g, to + 32 * g,
               [scale](int q, int) { return scale * static_cast<float>(kQ4Level[q]); });
  }
}

// ---- the table --------------------------------------------------------------------------------

template <void (*block)(const Byte*, float*), int bytes, int values>
void decode_blocks(const Byte* from, std::int64_t blocks, float* to) {
  for (std::int64_t i = 0; i < blocks; ++i) block(from + i * bytes, to + i * values);
}

struct Entry {
  StoredTypeInfo info;
  void (*decode)(const Byte* from, std::int64_t blocks, float* to);
};

template <void (*block)(const Byte*, float*), int bytes, int values>
constexpr Entry entry(StoredType type, const char* name) {
  return {{type, name, values, bytes}, decode_blocks<block, bytes, values>};
}

constexpr Entry kTypes[] = {
    {{StoredType::f32, "f32", 1, 4}, decode_f32},
    {{StoredType::f16, "f16", 1, 2}, decode_f16},
    {{StoredType::bf16, "bf16", 1, 2}, decode_bf16},
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

void decode_stored(StoredType type, const std::uint8_t* from, std::int64_t blocks, float* to) {
  entry_of(type).decode(from, blocks, to);
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

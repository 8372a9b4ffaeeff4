// How checkpoint files store numbers: plain floats, and the block formats of GGUF.
//
// A row is a whole number of blocks. Blocks lie at any even address (mxfp4: any), so their fields
// are read by memcpy; plain floats are aligned. d and m are f16, everything is little endian.
// Values come out as float32 in exactly the operations written here, one rounding each: what
// gguf-py's `gguf.quants.dequantize` gives.
//
//   type    values  bytes  the block                            value
//   f32          1      4  f32                                  x
//   f16          1      2  f16                                  x
//   bf16         1      2  the upper half of an f32             x
//   q4_0        32     18  d  q[16]                             d * (q - 8)
//   q4_1        32     20  d  m  q[16]                          d * q + m
//   q5_0        32     22  d  h[4]  q[16]                       d * (q - 16)
//   q5_1        32     24  d  m  h[4]  q[16]                    d * q + m
//   q8_0        32     34  d  q[32] int8                        d * q
//   iq4_nl      32     18  d  q[16]                             d * kQ4Level[q]
//   mxfp4       32     17  e  q[16]                             2^(e - 128) * kE2m1Level[q]
//   q2_k       256     84  s[16]  q[64]  d  m                   (d * sc) * q - (m * mn)
//   q3_k       256    110  h[32]  q[64]  s[12]  d               (d * (sc - 32)) * (q - 4)
//   q4_k       256    144  d  m  s[12]  q[128]                  (d * sc) * q - (m * mn)
//   q5_k       256    176  d  m  s[12]  h[32]  q[128]           (d * sc) * q - (m * mn)
//   q6_k       256    210  q[128]  h[64]  s[16] int8  d         (d * sc) * (q - 32)
//   iq4_xs     256    136  d  sh u16  s[4]  q[128]              (d * (sc - 32)) * kQ4Level[q]
//
// Where the bits of value k are:
//
//   32 values   q: low nibble of byte k (k < 16), high nibble of byte k - 16.
//               h (q5): bit k of the 32 is bit 4 of the code.
//   q2_k q3_k   q: byte k / 128 * 32 + k % 32, two bits at 2 * (k % 128 / 32).
//   q4_k q5_k   q: byte k / 64 * 32 + k % 32, low nibble in the first 32 of 64, else the high one.
//   q6_k        q: byte k / 128 * 64 + k % 64, low nibble in the first 64 of 128, else high;
//               h: byte k / 128 * 32 + k % 32, two bits at 2 * (k % 128 / 32), bits 4 and 5.
//   iq4_xs      each 32 values as the formats of 32.
//   h (q3, q5)  byte k % 32, bit k / 32: set means + 4 in q3_k, + 16 in q5_k.
//
// Scales of the 256-value formats, one per group g (16 values in q2_k q3_k q6_k, else 32):
//
//   q2_k        sc: low nibble of s[g], mn: high nibble
//   q3_k        sc: nibble g / 8 of s[g % 8], bits 4 and 5 at 2 * (g / 4) of s[8 + g % 4]
//   q4_k q5_k   g < 4:  sc: low six bits of s[g], mn: low six bits of s[4 + g]
//               g >= 4: sc: low nibble of s[4 + g], bits 4 and 5 the top two of s[g - 4];
//                       mn: high nibble of s[4 + g], bits 4 and 5 the top two of s[g]
//   iq4_xs      sc: nibble g % 2 of s[g / 2], bits 4 and 5 at 2 * g of sh
#pragma once

#include <cstdint>
#include <string>

namespace musespark {

enum class StoredType : std::uint32_t {
  f32,
  f16,
  bf16,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  iq4_nl,
  mxfp4,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_xs
};

struct StoredTypeInfo {
  StoredType type;
  const char* name;
  std::int64_t values;  // of a block
  std::int64_t bytes;
};

const StoredTypeInfo& stored_type_info(StoredType type);
// Throws InvalidRequest, naming the known ones.
const StoredTypeInfo& stored_type_from_name(const std::string& name);

// `blocks` blocks to floats: to[0 .. blocks * values).
void decode_stored(StoredType type, const std::uint8_t* from, std::int64_t blocks, float* to);

// Every block type is integers with a float scale and least per 16 values:
//
//   value[k] = scale[k / 16] * code[k] - least[k / 16]
//
// in exactly these operations; least is 0 in types that have none.
inline constexpr std::int64_t kStoredGroup = 16;

struct StoredIntegers {
  std::int8_t* codes;      // [values]
  float *scales, *leasts;  // the one of group g at [g * stride]
  std::int64_t stride;
};

// `blocks` blocks of a block type (info.values > 1).
void decode_integers(StoredType type, const std::uint8_t* from, std::int64_t blocks,
                     const StoredIntegers& to);

// iq4_xs blocks as eight iq4_nl blocks each: the same codes, each scale d * (sc - 32) rounded to
// f16. False, and `to` unfinished, where one is not finite as f16.
bool iq4_xs_to_iq4_nl(const std::uint8_t* from, std::int64_t blocks, std::uint8_t* to);

}  // namespace musespark

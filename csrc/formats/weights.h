// Packed weight formats: bytes of an N x K matrix W (out = x . W^T, N outputs, K inputs).
//
// Rows are taken 16 at a time (a "row block"); N is padded to 16 and K to 64 with zeros. A packed
// matrix is ceil(N/16) row blocks one after the other, each `row_block_bytes` long, 64-byte
// aligned.
//
// Every quantized format is a compression of one int8 matrix w8 with scales:
//
//     W[n][k] ~= row[n] * block[n][k / B] * w8[n][k]
//
// row is one float per row, block one f16 per row and B columns. The int8 value is an exact integer
// function of the stored code and, for q4 and q6, of an int8 sub-scale per row and 32 columns:
//
//     w8 = (level(code) * sub + 64) >> 7      (arithmetic shift: vpmulhrsw on level << 8)
//
// so that a dot product over a block is an exact int32 and no float touches a weight below a block.
// Without sub-scales w8 = level(code).
//
//   format   level(code)               sub   B    bits/weight (K = 2048)
//   q8       int8                      -     64   8.27
//   q8g1024h int8                      -     1024 8.03
//   q6       4 * code, 6 bits signed   32    256  6.33
//   q4       kQ4Level[code], 4 bits    32    256  4.33
//   q8g32h   int8                      -     32   8.52
//   q4g32h   kInt4Level[code]          -     32   4.52
//   iq4g32h  kQ4Level[code]            -     32   4.52
//   mxfp4    kE2m1Level[code]          -     32   4.52
//   f32      float                     -     -    32
//   bf16     float >> 16               -     -    16
//
// Those with a block of 32 hold what others quantized, to the bit (formats/repack.h):
// GGUF's Q8_0, Q4_0, IQ4_NL and MXFP4, and symmetric integers in groups of 32. Their levels are
// at most 19 bits with a block scale, so row * block * w8 in floats is the number of the file.
//
// Packers write codes and sub-scales in -127..127 (so |w8| <= 127; q8g32h takes any int8), finite
// scales, and zeros in padding. Files may hold anything: a sub-scale of -128 counts as -127, and
// every other byte string means what is written above.
//
// A row block, Kp = K rounded up to 64, in this order (scales first, so that a linear prefetch of
// the bytes has them in cache before the codes that need them):
//
//   row    [16 rows] f32                       (quantized formats)
//   block  ceil(Kp/B) x [16 rows] f16          (quantized formats)
//   sub    Kp/32 x [16 rows] int8              (q4, q6)
//   zero bytes up to a multiple of 64
//   codes, a multiple of 64 bytes (a "quad" is four columns: k = 4 * quad .. 4 * quad + 3):
//     8 bits  Kp/4 x [16 rows][4 k] int8                                       (64 bytes a quad)
//     4 bits  Kp/64 x 8 vectors v of 64 bytes: byte [row][k%4] holds quad v of these 64 columns in
//             its low nibble and quad v + 8 in its high nibble. (Columns 0..31 = low nibbles = the
//             first group of 32, columns 32..63 = high nibbles = the second.)
//     q6      Kp/64 x (8 vectors of low four bits, as above; then 4 vectors u of the high two bits:
//             byte [row][k%4] = quad u | quad u+4 << 2 | quad u+8 << 4 | quad u+12 << 6)
//     f32     Kp x [16 rows] f32
//     bf16    Kp/2 x [16 rows][2 k] bf16
#pragma once

#include <cstdint>

namespace musespark {

enum class WeightFormat : std::uint32_t {
  f32 = 0,
  bf16 = 1,
  q8 = 2,
  q6 = 3,
  q4 = 4,
  q8g32h = 5,
  q4g32h = 6,
  iq4g32h = 7,
  mxfp4 = 8,
  q8g1024h = 9
};

// Bumped whenever the bits of any result change for the same packed bytes.
inline constexpr std::uint32_t kArithmeticVersion = 2;

inline constexpr int kRowBlock = 16;
inline constexpr int kActGroup =
    64;  // columns of activations by which scales are stored: qmatmul.h
inline constexpr int kSubGroup = 32;       // columns that share one int8 sub-scale (q4, q6)
inline constexpr int kBlockQ8 = 64;        // columns that share one f16 block scale
inline constexpr int kBlockQ8Wide = 1024;  // q8g1024h
inline constexpr int kBlockQ4 = 256;       // q4 and q6
inline constexpr int kBlockG32 = 32;       // q8g32h, q4g32h, iq4g32h, mxfp4

// The sixteen levels of q4 and iq4g32h (llama.cpp's IQ4_NL table): denser near zero, one end
// longer; a negative sub-scale turns them round.
constexpr std::int8_t kQ4Level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

// Of q4g32h: GGUF's Q4_0 stores the level plus 8.
constexpr std::int8_t kInt4Level[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

// Of mxfp4: the e2m1 numbers, doubled (their scale is halved). Code 8, minus zero, is zero.
constexpr std::int8_t kE2m1Level[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// A packed matrix as kernels see it. `data` is 64-byte aligned, row_blocks * row_block_bytes long.
struct PackedMatrix {
  const std::uint8_t* data;
  std::int64_t row_block_bytes;
  std::int64_t rows;  // N, unpadded
  std::int64_t cols;  // K, unpadded
  WeightFormat format;
};

}  // namespace musespark

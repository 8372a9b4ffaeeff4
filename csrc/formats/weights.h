// Packed weight formats: bytes of an N x K matrix W (out = x . W^T, N outputs, K inputs).
//
// Rows are taken 16 at a time (a "row block"); N is padded to 16 and K to 64 with zeros. A packed
// matrix is ceil(N/16) row blocks one after the other, each `row_block_bytes` long, 64-byte
// aligned.
//
// Every quantized format is a compression of one int8 matrix w8 with scales:
//
//     W[n][k] ~= row[n] * block[n][k / B] * w8[n][k]          |w8| <= 127
//
// row is one float per row, block one f16 per row and B columns. The int8 value is an exact integer
// function of the stored code and, for q4 and q6, of an int8 sub-scale per row and 32 columns:
//
//     w8 = (level(code) * sub + 64) >> 7      (arithmetic shift: vpmulhrsw on level << 8)
//
// so that a dot product over a block is an exact int32 and no float touches a weight below a block.
// Packers write codes and sub-scales in -127..127 (so |w8| <= 127), finite scales, and zeros in
// padding.
//
//   format  level(code)               sub   B    bits/weight (K = 2048)
//   q8      int8                      -     64   8.27
//   q6      4 * code, 6 bits signed   32    256  6.33
//   q4      kQ4Level[code], 4 bits    32    256  4.33
//   f32     float                     -     -    32
//   bf16    float >> 16               -     -    16
//
// A row block, Kp = K rounded up to 64, in this order (scales first, so that a linear prefetch of
// the bytes has them in cache before the codes that need them):
//
//   row    [16 rows] f32                       (quantized formats)
//   block  ceil(Kp/B) x [16 rows] f16          (quantized formats)
//   sub    Kp/32 x [16 rows] int8              (q4, q6)
//   zero bytes up to a multiple of 64
//   codes, a multiple of 64 bytes (a "quad" is four columns: k = 4 * quad .. 4 * quad + 3):
//     q8    Kp/4 x [16 rows][4 k] int8                                       (64 bytes a quad)
//     q4    Kp/64 x 8 vectors v of 64 bytes: byte [row][k%4] holds quad v of these 64 columns in
//           its low nibble and quad v + 8 in its high nibble. (Columns 0..31 = sub-scale group 0 =
//           low nibbles, columns 32..63 = group 1 = high nibbles.)
//     q6    Kp/64 x (8 vectors of low four bits, as q4; then 4 vectors u of the high two bits:
//           byte [row][k%4] = quad u | quad u+4 << 2 | quad u+8 << 4 | quad u+12 << 6)
//     f32   Kp x [16 rows] f32
//     bf16  Kp/2 x [16 rows][2 k] bf16
//
// Reserved for part 2: q4g32h and q8g32h (f16 per 32 columns, row = 1; GGUF's Q4_0/IQ4_NL and
// Q8_0).
#pragma once

#include <cstdint>

namespace musespark {

enum class WeightFormat : std::uint32_t { f32 = 0, bf16 = 1, q8 = 2, q6 = 3, q4 = 4 };

// Bumped whenever the bits of any result change for the same packed bytes.
inline constexpr std::uint32_t kArithmeticVersion = 1;

inline constexpr int kRowBlock = 16;
inline constexpr int kActGroup = 64;  // columns that share one activation scale
inline constexpr int kSubGroup = 32;  // columns that share one int8 sub-scale (q4, q6)
inline constexpr int kBlockQ8 = 64;   // columns that share one f16 block scale
inline constexpr int kBlockQ4 = 256;  // q4 and q6

// The sixteen levels of q4 (llama.cpp's IQ4_NL table): denser near zero, one end longer; a negative
// sub-scale turns them round.
constexpr std::int8_t kQ4Level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

// A packed matrix as kernels see it. `data` is 64-byte aligned, row_blocks * row_block_bytes long.
struct PackedMatrix {
  const std::uint8_t* data;
  std::int64_t row_block_bytes;
  std::int64_t rows;  // N, unpadded
  std::int64_t cols;  // K, unpadded
  WeightFormat format;
};

}  // namespace musespark

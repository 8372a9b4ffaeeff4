// Sizes, views and scalar decoding of packed weights (weights.h has the bytes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "formats/weights.h"

namespace musespark {

// Where the parts of a packed rows x cols matrix lie; offsets are bytes within a row block.
struct WeightLayout {
  std::int64_t padded_cols;  // Kp
  std::int64_t row_blocks;
  std::int64_t blocks;        // f16 block scales per row
  std::int64_t block_offset;  // row scales are at 0
  std::int64_t sub_offset;
  std::int64_t codes_offset;
  std::int64_t row_block_bytes;
  std::int64_t bytes;  // of the whole matrix
};

// Throws InvalidRequest unless rows and cols are at least 1 and the size fits 63 bits.
WeightLayout weight_layout(WeightFormat format, std::int64_t rows, std::int64_t cols);

const char* weight_format_name(WeightFormat format);
std::vector<std::string> weight_format_names();
// Throws InvalidRequest, naming the known ones.
WeightFormat weight_format_from_name(const std::string& name);

inline bool is_quantized(WeightFormat format) {
  return format != WeightFormat::f32 && format != WeightFormat::bf16;
}
// Whether the format has an int8 sub-scale per 32 columns.
inline bool has_sub_scales(WeightFormat format) {
  return format == WeightFormat::q4 || format == WeightFormat::q6;
}
// Bits of a code of a quantized format.
int code_bits(WeightFormat format);
// Columns that share a block scale.
std::int64_t block_columns(WeightFormat format);
// The int8 that each code of a 4-bit format stands for.
const std::int8_t (&code_levels(WeightFormat format))[16];

// A view of packed bytes. Throws CorruptFile unless `size` is what the shape needs and `data` is
// 64-byte aligned. `what` names the tensor in the message.
PackedMatrix packed_matrix(WeightFormat format, std::int64_t rows, std::int64_t cols,
                           const void* data, std::size_t size, const std::string& what);

// The bits stored for one element of a quantized matrix, padding included.
int stored_code(const PackedMatrix& w, std::int64_t row, std::int64_t col);

// w8 of one element of a quantized matrix.
int decode_code(const PackedMatrix& w, std::int64_t row, std::int64_t col);

// Row `row` as floats, out[0 .. cols): (float(w8) * float(block)) * row scale for quantized
// formats, the stored number for f32 and bf16. Throws InvalidRequest for a row outside the matrix.
void decode_row(const PackedMatrix& w, std::int64_t row, float* out);

}  // namespace musespark

#include "formats/weights_codec.h"

#include <cstring>

#include "base/checked.h"
#include "base/errors.h"
#include "base/half.h"

namespace musespark {
namespace {

struct FormatName {
  WeightFormat format;
  const char* name;
};
constexpr FormatName kNames[] = {
    {WeightFormat::f32, "f32"},       {WeightFormat::bf16, "bf16"},
    {WeightFormat::q8, "q8"},         {WeightFormat::q6, "q6"},
    {WeightFormat::q4, "q4"},         {WeightFormat::q8g32h, "q8g32h"},
    {WeightFormat::q4g32h, "q4g32h"}, {WeightFormat::iq4g32h, "iq4g32h"},
    {WeightFormat::mxfp4, "mxfp4"},   {WeightFormat::q8g1024h, "q8g1024h"}};

[[noreturn]] void fail_format(WeightFormat format) {
  throw InvalidRequest("format: " + std::to_string(static_cast<std::uint32_t>(format)) +
                       " is no weight format");
}

int element_bits(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32:
      return 32;
    case WeightFormat::bf16:
      return 16;
    case WeightFormat::q8:
    case WeightFormat::q8g32h:
    case WeightFormat::q8g1024h:
      return 8;
    case WeightFormat::q6:
      return 6;
    case WeightFormat::q4:
    case WeightFormat::q4g32h:
    case WeightFormat::iq4g32h:
    case WeightFormat::mxfp4:
      return 4;
  }
  fail_format(format);
}

std::int64_t code_bytes_per_64(WeightFormat format) {  // of 16 rows x 64 columns
  return kRowBlock * 64 / 8 * element_bits(format);
}

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return checked_round_up<InvalidRequest>(value, step, "packed size");
}

struct BlockView {  // the row block of one row
  const std::uint8_t* base;
  WeightLayout layout;
};

BlockView block_of(const PackedMatrix& w, std::int64_t row) {
  return {w.data + row / kRowBlock * w.row_block_bytes, weight_layout(w.format, w.rows, w.cols)};
}

// The bits stored for one element: 0..255, 0..63 or 0..15.
int code_at(const BlockView& v, WeightFormat format, std::int64_t r, std::int64_t k) {
  const std::int64_t quad = k % 64 / 4, byte = r * 4 + k % 4;
  const std::uint8_t* codes = v.base + v.layout.codes_offset + k / 64 * code_bytes_per_64(format);
  const int bits = code_bits(format);
  if (bits == 8) return codes[quad * 64 + byte];
  const std::uint8_t pair = codes[quad % 8 * 64 + byte];
  const int low = quad < 8 ? pair & 15 : pair >> 4;
  if (bits == 4) return low;
  return low + 16 * (codes[512 + quad % 4 * 64 + byte] >> (quad / 4 * 2) & 3);
}

int quantized_code(const BlockView& v, WeightFormat format, std::int64_t r, std::int64_t k) {
  const int code = code_at(v, format, r, k), bits = code_bits(format);
  if (bits == 8) return static_cast<std::int8_t>(code);
  const int level = bits == 4 ? code_levels(format)[code] : 4 * (code >= 32 ? code - 64 : code);
  if (!has_sub_scales(format)) return level;
  const auto sub =
      static_cast<std::int8_t>(v.base[v.layout.sub_offset + k / kSubGroup * kRowBlock + r]);
  return (level * (sub < -127 ? -127 : sub) + 64) >> 7;
}

}  // namespace

int code_bits(WeightFormat format) {
  if (!is_quantized(format)) throw InvalidRequest("format: floats have no codes");
  return element_bits(format);
}

std::int64_t block_columns(WeightFormat format) {
  if (format == WeightFormat::q8) return kBlockQ8;
  if (format == WeightFormat::q8g1024h) return kBlockQ8Wide;
  return has_sub_scales(format) ? kBlockQ4 : kBlockG32;
}

const std::int8_t (&code_levels(WeightFormat format))[16] {
  switch (format) {
    case WeightFormat::q4:
    case WeightFormat::iq4g32h:
      return kQ4Level;
    case WeightFormat::q4g32h:
      return kInt4Level;
    case WeightFormat::mxfp4:
      return kE2m1Level;
    default:
      throw InvalidRequest(std::string("format: ") + weight_format_name(format) +
                           " has no table of levels");
  }
}

WeightLayout weight_layout(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  if (rows < 1 || cols < 1) {
    throw InvalidRequest("a weight matrix has at least one row and one column, not " +
                         std::to_string(rows) + " x " + std::to_string(cols));
  }
  const auto mul = [](std::int64_t a, std::int64_t b) {
    return checked_mul<InvalidRequest>(a, b, "packed size");
  };
  const auto add = [](std::int64_t a, std::int64_t b) {
    return checked_add<InvalidRequest>(a, b, "packed size");
  };
  WeightLayout at{};
  at.padded_cols = round_up(cols, kActGroup);
  at.row_blocks = round_up(rows, kRowBlock) / kRowBlock;
  if (is_quantized(format)) {
    const std::int64_t block = block_columns(format);
    at.blocks = round_up(at.padded_cols, block) / block;
    at.block_offset = kRowBlock * 4;
    at.sub_offset = add(at.block_offset, mul(at.blocks, kRowBlock * 2));
    const std::int64_t subs =
        has_sub_scales(format) ? mul(at.padded_cols / kSubGroup, kRowBlock) : 0;
    at.codes_offset = round_up(add(at.sub_offset, subs), 64);
  }
  at.row_block_bytes = add(at.codes_offset, mul(at.padded_cols / 64, code_bytes_per_64(format)));
  at.bytes = mul(at.row_block_bytes, at.row_blocks);
  return at;
}

const char* weight_format_name(WeightFormat format) {
  for (const FormatName& entry : kNames) {
    if (entry.format == format) return entry.name;
  }
  fail_format(format);
}

std::vector<std::string> weight_format_names() {
  std::vector<std::string> names;
  for (const FormatName& entry : kNames) names.emplace_back(entry.name);
  return names;
}

WeightFormat weight_format_from_name(const std::string& name) {
  std::string known;
  for (const FormatName& entry : kNames) {
    if (name == entry.name) return entry.format;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InvalidRequest("format: '" + name + "' is not one of " + known);
}

PackedMatrix packed_matrix(WeightFormat format, std::int64_t rows, std::int64_t cols,
                           const void* data, std::size_t size, const std::string& what) {
  const WeightLayout layout = weight_layout(format, rows, cols);
  if (size != static_cast<std::size_t>(layout.bytes)) {
    throw CorruptFile(what + ": " + std::to_string(size) + " bytes, but " +
                      weight_format_name(format) + " of " + std::to_string(rows) + " x " +
                      std::to_string(cols) + " takes " + std::to_string(layout.bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(data) % 64 != 0) {
    throw CorruptFile(what + ": packed bytes do not start at a multiple of 64");
  }
  return {static_cast<const std::uint8_t*>(data), layout.row_block_bytes, rows, cols, format};
}

int stored_code(const PackedMatrix& w, std::int64_t row, std::int64_t col) {
  return code_at(block_of(w, row), w.format, row % kRowBlock, col);
}

int decode_code(const PackedMatrix& w, std::int64_t row, std::int64_t col) {
  return quantized_code(block_of(w, row), w.format, row % kRowBlock, col);
}

void decode_row(const PackedMatrix& w, std::int64_t row, float* out) {
  if (row < 0 || row >= w.rows) {
    throw InvalidRequest("row " + std::to_string(row) + " of a matrix of " +
                         std::to_string(w.rows) + " rows");
  }
  const BlockView v = block_of(w, row);
  const std::int64_t r = row % kRowBlock;
  if (w.format == WeightFormat::f32) {
    for (std::int64_t k = 0; k < w.cols; ++k) {
      std::memcpy(out + k, v.base + (k * kRowBlock + r) * 4, 4);
    }
    return;
  }
  if (w.format == WeightFormat::bf16) {
    for (std::int64_t k = 0; k < w.cols; ++k) {
      std::uint16_t bits;
      std::memcpy(&bits, v.base + (k / 2 * kRowBlock + r) * 4 + k % 2 * 2, 2);
      out[k] = bf16_to_f32(bits);
    }
    return;
  }
  float row_scale;
  std::memcpy(&row_scale, v.base + r * 4, 4);
  const std::int64_t block_cols = block_columns(w.format);
  for (std::int64_t k = 0; k < w.cols; ++k) {
    std::uint16_t block;
    std::memcpy(&block, v.base + v.layout.block_offset + (k / block_cols * kRowBlock + r) * 2, 2);
    const int w8 = quantized_code(v, w.format, r, k);
    out[k] = (static_cast<float>(w8) * f16_to_f32(block)) * row_scale;
  }
}

}  // namespace musespark

#include "formats/repack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/float_env.h"
#include "base/half.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

constexpr int kGroup = kBlockG32;
// f16 holds m * 2^x with m odd, below 2^11, where x >= -24 and the number is below 2^16.
constexpr int kHalfBits = 11, kHalfLowest = -24, kHalfTop = 15;

std::string place(std::int64_t row, std::int64_t block) {
  return "row " + std::to_string(row) + ", block " + std::to_string(block);
}

// 2^exponent, -149 to 127.
float power_of_two(int exponent) {
  const std::uint32_t bits =
      exponent < -126 ? 1u << (exponent + 149) : static_cast<std::uint32_t>(exponent + 127) << 23;
  return std::bit_cast<float>(bits);
}

// A source gives the codes of a group of 32, a byte each, and its scale.
class BlockSource {
 public:
  BlockSource(WeightFormat format, const BlockMatrix& from)
      : from_(from), bytes_(source_block_bytes(format)), is_byte_(code_bits(format) == 8) {
    type = format == WeightFormat::mxfp4 ? ScaleType::e8m0 : ScaleType::f16;
    if (from.cols % kGroup != 0) {
      throw InvalidRequest("cols is " + std::to_string(from.cols) + ", blocks hold " +
                           std::to_string(kGroup) + " columns");
    }
  }

  ScaleType type;
  std::int64_t rows() const { return from_.rows; }
  std::int64_t cols() const { return from_.cols; }

  const std::uint8_t* scale(std::int64_t row, std::int64_t block) const {
    return from_.data + row * from_.row_bytes + block * bytes_;
  }

  void codes(std::int64_t row, std::int64_t block, std::uint8_t* to) const {
    const std::uint8_t* p = scale(row, block) + (type == ScaleType::e8m0 ? 1 : 2);
    if (is_byte_) {
      std::memcpy(to, p, kGroup);
      return;
    }
    for (int j = 0; j < kGroup / 2; ++j) {
      to[j] = p[j] & 15;
      to[j + kGroup / 2] = p[j] >> 4;
    }
  }

 private:
  BlockMatrix from_;
  std::int64_t bytes_;
  bool is_byte_;
};

class CodeSource {
 public:
  CodeSource(WeightFormat format, const CodeMatrix& from)
      : type(from.scale_type),
        from_(from),
        groups_((from.cols + kGroup - 1) / kGroup),
        is_byte_(code_bits(format) == 8) {
    if (block_columns(format) != kGroup) {
      throw InvalidRequest(std::string("format ") + weight_format_name(format) +
                           " has no scale per 32 columns");
    }
    if (type == ScaleType::e8m0 && format != WeightFormat::mxfp4) {
      throw InvalidRequest(std::string("e8m0 scales belong to mxfp4, not ") +
                           weight_format_name(format));
    }
  }

  ScaleType type;
  std::int64_t rows() const { return from_.rows; }
  std::int64_t cols() const { return from_.cols; }

  const std::uint8_t* scale(std::int64_t row, std::int64_t block) const {
    const int bytes = type == ScaleType::e8m0 ? 1 : type == ScaleType::f32 ? 4 : 2;
    return static_cast<const std::uint8_t*>(from_.scales) + (row * groups_ + block) * bytes;
  }

  void codes(std::int64_t row, std::int64_t block, std::uint8_t* to) const {
    const std::int64_t first = block * kGroup,
                       count = std::min<std::int64_t>(kGroup, cols() - first);
    std::memcpy(to, from_.codes + row * cols() + first, static_cast<std::size_t>(count));
    std::memset(to + count, 0, static_cast<std::size_t>(kGroup - count));
    if (is_byte_) return;
    const auto wrong = std::find_if(to, to + count, [](std::uint8_t code) { return code > 15; });
    if (wrong != to + count) {
      throw InvalidRequest(
          "codes: row " + std::to_string(row) + ", column " + std::to_string(first + (wrong - to)) +
          " is " + std::to_string(static_cast<std::int8_t>(*wrong)) + ", allowed is 0 to 15");
    }
  }

 private:
  CodeMatrix from_;
  std::int64_t groups_;
  bool is_byte_;
};

// s = odd * 2^low, odd of `bits` bits, highest bit 2^top; s is finite and not 0.
struct Binary {
  int low, top, bits;
  explicit Binary(float s) {
    const std::uint32_t word = std::bit_cast<std::uint32_t>(s);
    const int exponent = static_cast<int>(word >> 23 & 255);
    const std::uint32_t mantissa = (word & 0x7fffff) | (exponent == 0 ? 0 : 0x800000);
    const int zeros = std::countr_zero(mantissa);
    low = std::max(exponent, 1) - 150 + zeros;
    bits = std::bit_width(mantissa) - zeros;
    top = low + bits - 1;
  }
};

template <class Source>
class Repacker {
 public:
  Repacker(WeightFormat format, const Source& source)
      : format_(format),
        source_(source),
        layout_(weight_layout(format, source.rows(), source.cols())),
        groups_((source.cols() + kGroup - 1) / kGroup),
        scales_(static_cast<std::size_t>(groups_)) {
    for (int code = 0; code < (code_bits(format) == 8 ? 256 : 16); ++code) {
      const int level =
          code_bits(format) == 8 ? static_cast<std::int8_t>(code) : code_levels(format)[code];
      zero_[code] = level == 0;
      largest_level_ = std::max(largest_level_, std::abs(level));
    }
  }

  void pack(std::int64_t index, std::uint8_t* to) {
    std::memset(to, 0, static_cast<std::size_t>(layout_.row_block_bytes));
    for (int r = 0; r < kRowBlock && index * kRowBlock + r < source_.rows(); ++r) {
      pack_row(index * kRowBlock + r, r, to);
    }
  }

 private:
  void pack_row(std::int64_t row, int r, std::uint8_t* to) {
    std::uint8_t* codes = to + layout_.codes_offset + r * 4;
    for (std::int64_t b = 0; b < groups_; b += 2) {
      std::uint8_t pair[2 * kGroup] = {};
      source_.codes(row, b, pair);
      read_scale(row, b, pair);
      if (b + 1 < groups_) {
        source_.codes(row, b + 1, pair + kGroup);
        read_scale(row, b + 1, pair + kGroup);
      }
      codes = write_codes(pair, codes);
    }
    float row_scale = 1.0f;
    if (source_.type != ScaleType::f16) row_scale = fit_row(row);
    std::memcpy(to + r * 4, &row_scale, 4);
    for (std::int64_t b = 0; b < groups_; ++b) {
      std::uint16_t bits;
      if (source_.type == ScaleType::f16) {
        std::memcpy(&bits, source_.scale(row, b), 2);
      } else {
        bits = f32_to_f16(scales_[static_cast<std::size_t>(b)] / row_scale);
      }
      std::memcpy(to + layout_.block_offset + (b * kRowBlock + r) * 2, &bits, 2);
    }
  }

  // Interleaves 64 codes of a row; returns where the next 64 go.
  std::uint8_t* write_codes(std::uint8_t* codes, std::uint8_t* to) const {
    const int quads = code_bits(format_) * 2;
    if (quads == 8) {
      for (int j = 0; j < kGroup; ++j) {
        codes[j] = static_cast<std::uint8_t>(codes[j] | codes[kGroup + j] << 4);
      }
    }
    for (int v = 0; v < quads; ++v) std::memcpy(to + v * 64, codes + 4 * v, 4);
    return to + quads * 64;
  }

  // Into scales_, 0 for a group of zeros.
  void read_scale(std::int64_t row, std::int64_t block, const std::uint8_t* codes) {
    const float scale = decoded_scale(source_.scale(row, block));
    if (!std::isfinite(scale) || std::fabs(static_cast<double>(scale)) * largest_level_ >
                                     static_cast<double>(std::numeric_limits<float>::max())) {
      throw InvalidRequest("scale " + std::to_string(scale) + " of " + place(row, block) +
                           " is not finite or makes weights that are not");
    }
    const bool zeros =
        std::all_of(codes, codes + kGroup, [&](std::uint8_t code) { return zero_[code]; });
    scales_[static_cast<std::size_t>(block)] = zeros ? 0.0f : scale;
  }

  float decoded_scale(const std::uint8_t* p) const {
    if (source_.type == ScaleType::e8m0) {
      // Half of what the byte stands for, since kE2m1Level is doubled.
      return *p == 255 ? std::numeric_limits<float>::quiet_NaN() : power_of_two(*p - 128);
    }
    if (source_.type == ScaleType::f32) {
      float scale;
      std::memcpy(&scale, p, 4);
      return scale;
    }
    std::uint16_t bits;
    std::memcpy(&bits, p, 2);
    return source_.type == ScaleType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  }

  // The scale that all blocks of the row have but those of zeros; 0 where there is no such one.
  float only_scale() const {
    float only = 0.0f;
    for (const float scale : scales_) {
      if (scale == 0.0f || scale == only) continue;
      if (only != 0.0f) return 0.0f;
      only = scale;
    }
    return only;
  }

  // The power of two nearest to 1 by which all scales are f16, or their one scale itself.
  float fit_row(std::int64_t row) const {
    if (source_.type == ScaleType::f32 && only_scale() != 0.0f) return only_scale();
    int least = -200, most = 200;  // exponents
    for (std::int64_t b = 0; b < groups_; ++b) {
      const float scale = scales_[static_cast<std::size_t>(b)];
      if (scale == 0.0f) continue;
      const Binary binary(scale);
      if (binary.bits > kHalfBits) {
        throw UnsupportedModel("the scale of " + place(row, b) + " has " +
                               std::to_string(binary.bits) + " significant bits, f16 holds " +
                               std::to_string(kHalfBits));
      }
      least = std::max(least, binary.top - kHalfTop);
      most = std::min(most, binary.low - kHalfLowest);
    }
    if (least > most) {
      throw UnsupportedModel("the scales of row " + std::to_string(row) + " reach from 2^" +
                             std::to_string(most + kHalfLowest) + " to 2^" +
                             std::to_string(least + kHalfTop) + ", f16 from 2^-24 to 2^15");
    }
    return power_of_two(std::clamp(0, least, most));
  }

  WeightFormat format_;
  const Source& source_;
  WeightLayout layout_;
  std::int64_t groups_;
  std::vector<float> scales_;
  bool zero_[256] = {};
  int largest_level_ = 0;
};

template <class Source>
void pack_all(WeightFormat format, const Source& source, std::int64_t begin, std::int64_t end,
              std::uint8_t* to) {
  const std::int64_t bytes = weight_layout(format, source.rows(), source.cols()).row_block_bytes;
  const FloatEnv environment;
  Repacker<Source> packer(format, source);
  for (std::int64_t b = begin; b < end; ++b) packer.pack(b, to + b * bytes);
}

}  // namespace

bool holds_exactly(WeightFormat format, StoredType type) {
  return (format == WeightFormat::q8g32h && type == StoredType::q8_0) ||
         (format == WeightFormat::q4g32h && type == StoredType::q4_0) ||
         (format == WeightFormat::iq4g32h && type == StoredType::iq4_nl) ||
         (format == WeightFormat::mxfp4 && type == StoredType::mxfp4);
}

std::int64_t source_block_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::q8g32h:
      return 2 + kGroup;
    case WeightFormat::q4g32h:
    case WeightFormat::iq4g32h:
      return 2 + kGroup / 2;
    case WeightFormat::mxfp4:
      return 1 + kGroup / 2;
    default:
      throw InvalidRequest(std::string("format ") + weight_format_name(format) +
                           " is none of q8g32h, q4g32h, iq4g32h, mxfp4, which hold GGUF blocks");
  }
}

void pack_row_blocks(WeightFormat format, const BlockMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to) {
  pack_all(format, BlockSource(format, from), begin, end, to);
}

void pack_row_blocks(WeightFormat format, const CodeMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to) {
  pack_all(format, CodeSource(format, from), begin, end, to);
}

}  // namespace musespark

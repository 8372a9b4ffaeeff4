#include "formats/weights_check.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

bool is_finite_half(std::uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }
bool is_finite_float(std::uint32_t bits) { return (bits & 0x7f800000) != 0x7f800000; }

class RowBlockCheck {
 public:
  RowBlockCheck(const PackedMatrix& w, const std::string& what)
      : w_(w), what_(what), layout_(weight_layout(w.format, w.rows, w.cols)) {}

  void check(std::int64_t index) {
    p_ = w_.data + index * w_.row_block_bytes;
    first_ = index * kRowBlock;
    rows_ = std::min<std::int64_t>(kRowBlock, w_.rows - first_);
    for (std::int64_t r = 0; r < kRowBlock; ++r) check_scales(r);
    const std::int64_t gap = layout_.sub_offset + sub_groups() * kRowBlock;
    if (std::any_of(p_ + gap, p_ + layout_.codes_offset, [](std::uint8_t b) { return b != 0; })) {
      fail("row " + std::to_string(first_), "bytes before the codes are not zero");
    }
    if (rows_ < kRowBlock) check_codes_zero(rows_, 0);
    check_codes_zero(0, w_.cols);
  }

 private:
  template <class T>
  T read(std::int64_t offset) const {
    T value;
    std::memcpy(&value, p_ + offset, sizeof value);
    return value;
  }

  std::int64_t sub_groups() const {
    return has_sub_scales(w_.format) ? layout_.padded_cols / kSubGroup : 0;
  }

  void check_scales(std::int64_t r) const {
    const bool padding = r >= rows_;
    const std::string row = "row " + std::to_string(first_ + r);
    const auto scale = read<std::uint32_t>(r * 4);
    if (!is_finite_float(scale)) fail(row, "the scale is not finite");
    bool zero = scale == 0;
    for (std::int64_t b = 0; b < layout_.blocks; ++b) {
      const auto block = read<std::uint16_t>(layout_.block_offset + (b * kRowBlock + r) * 2);
      if (!is_finite_half(block)) {
        fail(row + ", block " + std::to_string(b), "the scale is not finite");
      }
      zero = zero && block == 0;
    }
    for (std::int64_t g = 0; g < sub_groups(); ++g) {
      const auto sub = read<std::int8_t>(layout_.sub_offset + g * kRowBlock + r);
      if (sub == -128) fail(row + ", group " + std::to_string(g), "the sub-scale is -128");
      zero = zero && sub == 0;
    }
    if (padding && !zero) fail(row, "scales of a row past the last are not zero");
  }

  // Codes of rows from `row` on in columns from `col` on.
  void check_codes_zero(std::int64_t row, std::int64_t col) const {
    for (std::int64_t k = col; k < layout_.padded_cols; ++k) {
      for (std::int64_t r = row; r < kRowBlock; ++r) {
        if (stored_code(w_, first_ + r, k) == 0) continue;
        fail("row " + std::to_string(first_ + r) + ", column " + std::to_string(k),
             "a code in the padding is not zero");
      }
    }
  }

  [[noreturn]] void fail(const std::string& place, const std::string& wrong) const {
    throw CorruptFile(what_ + ": " + place + ": " + wrong);
  }

  const PackedMatrix& w_;
  const std::string& what_;
  WeightLayout layout_;
  const std::uint8_t* p_ = nullptr;
  std::int64_t first_ = 0, rows_ = 0;
};

}  // namespace

void check_packed(const PackedMatrix& w, const std::string& what) {
  if (!is_quantized(w.format)) return;
  RowBlockCheck check(w, what);
  const std::int64_t row_blocks = (w.rows + kRowBlock - 1) / kRowBlock;
  for (std::int64_t b = 0; b < row_blocks; ++b) check.check(b);
}

}  // namespace musespark

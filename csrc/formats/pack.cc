#include "formats/pack.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/cpu.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "base/half.h"
#include "formats/pack_steps.h"
#include "formats/repack.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

constexpr float kSmallestRow = 1e-30f;  // largest magnitude of a row that is not packed to zeros

const PackSteps& steps_of_machine() {
  for (const Isa isa : isa_levels()) {
#if defined(__x86_64__)
    if (isa == Isa::avx512vnni) return pack_steps_avx512vnni;
    if (isa == Isa::avx2) return pack_steps_avx2;
#endif
    if (isa == Isa::scalar) break;
  }
  return pack_steps_scalar;
}

// Work space of one row block, reused for the next.
class RowBlockPacker {
 public:
  RowBlockPacker(WeightFormat format, const StoredMatrix& from, const PackSteps& steps)
      : format_(format),
        from_(from),
        steps_(steps),
        layout_(weight_layout(format, from.rows, from.cols)),
        tile_(kPackTile * kRowBlock * sizeof(float)),
        columns_(static_cast<std::size_t>(layout_.padded_cols) * kRowBlock * sizeof(float)) {
    if (!is_quantized(format)) return;
    const auto padded = static_cast<std::size_t>(layout_.padded_cols);
    codes_ = AlignedBuffer(padded * kRowBlock);
    scales_ = AlignedBuffer(padded / kSubGroup * kRowBlock * sizeof(float));
    inverse_ = AlignedBuffer(static_cast<std::size_t>(layout_.blocks) * kRowBlock * sizeof(float));
  }

  void pack(std::int64_t index, std::uint8_t* to) {
    std::memset(to, 0, static_cast<std::size_t>(layout_.row_block_bytes));
    load(index * kRowBlock);
    if (format_ == WeightFormat::f32) {
      std::memcpy(to, columns_.data(), static_cast<std::size_t>(layout_.row_block_bytes));
    } else if (format_ == WeightFormat::bf16) {
      write_bf16(reinterpret_cast<std::uint16_t*>(to));
    } else {
      quantize(to);
    }
  }

 private:
  // Rows first .. first + 15 into columns_[k][r], zeros where the matrix has ended.
  void load(std::int64_t first) {
    rows_ = std::min<std::int64_t>(kRowBlock, from_.rows - first);
    std::uint32_t largest[kRowBlock] = {};
    if (rows_ < kRowBlock) std::memset(tile_.data(), 0, tile_.size());
    for (std::int64_t k = 0; k < from_.cols; k += kPackTile) {
      const std::int64_t count = std::min(kPackTile, from_.cols - k);
      for (std::int64_t r = 0; r < rows_; ++r) {
        decode(first + r, k, count, tile_.as<float>() + r * kPackTile);
      }
      steps_.turn(tile_.as<float>(), count, columns_.as<float>() + k * kRowBlock, largest);
    }
    for (std::int64_t r = 0; r < kRowBlock; ++r) {
      if (largest[r] >= 0x7f800000u) refuse(first + r);
    }
    std::memcpy(amax_, largest, sizeof amax_);
  }

  // Columns k .. k + count - 1 of a row; k is a multiple of kPackTile.
  void decode(std::int64_t row, std::int64_t k, std::int64_t count, float* to) const {
    const StoredTypeInfo& info = stored_type_info(from_.type);
    const std::uint8_t* at = from_.data + row * from_.row_bytes + k / info.values * info.bytes;
    decode_stored(from_.type, at, count / info.values, to);
  }

  [[noreturn]] void refuse(std::int64_t row) const {
    std::vector<float> values(static_cast<std::size_t>(from_.cols));
    decode(row, 0, from_.cols, values.data());
    for (std::size_t k = 0; k < values.size(); ++k) {
      std::uint32_t bits;
      std::memcpy(&bits, &values[k], 4);
      if ((bits & 0x7fffffffu) >= 0x7f800000u) {
        throw InvalidRequest("weights: " + std::to_string(values[k]) + " at row " +
                             std::to_string(row) + ", column " + std::to_string(k) +
                             " is not finite");
      }
    }
    throw InvalidRequest("weights: row " + std::to_string(row) + " is not finite");
  }

  void write_bf16(std::uint16_t* to) const {
    const float* columns = columns_.as<float>();
    for (std::int64_t k = 0; k < from_.cols; ++k) {
      for (std::int64_t r = 0; r < kRowBlock; ++r) {
        const std::uint16_t bits = f32_to_bf16(columns[k * kRowBlock + r]);
        std::memcpy(to + (k / 2 * kRowBlock + r) * 2 + k % 2, &bits, 2);
      }
    }
  }

  void quantize(std::uint8_t* to) {
    float* columns = columns_.as<float>();
    float to_unit[kRowBlock];
    for (int r = 0; r < kRowBlock; ++r) {
      to_unit[r] = amax_[r] < kSmallestRow ? 0.0f : 1.0f / amax_[r];
    }
    for (std::int64_t k = 0; k < from_.cols; ++k) {
      for (int r = 0; r < kRowBlock; ++r) columns[k * kRowBlock + r] *= to_unit[r];
    }
    const PackRows rows{format_,
                        from_.quick,
                        from_.cols,
                        block_columns(format_),
                        columns,
                        scales_.as<float>(),
                        inverse_.as<float>(),
                        reinterpret_cast<std::int8_t*>(to + layout_.sub_offset),
                        codes_.as<std::uint8_t>()};
    std::memset(codes_.data(), 0, codes_.size());
    steps_.fit(rows);
    choose_scales(to);
    steps_.encode(rows);
    clear_padding_rows();
    steps_.lay_out(codes_.as<std::uint8_t>(), layout_.padded_cols, code_bits(format_),
                   to + layout_.codes_offset);
  }

  // Row and block scales from the groups' scales; inverse_ for the second step.
  void choose_scales(std::uint8_t* to) {
    const bool is_signed = block_columns(format_) == kBlockG32;  // else sub-scales have signs
    const std::int64_t width = format_ == WeightFormat::q8 ? kBlockQ8 : kSubGroup;
    const std::int64_t per_block = block_columns(format_) / width;
    const std::int64_t groups = (from_.cols + width - 1) / width;
    const float* scales = scales_.as<float>();
    float* inverse = inverse_.as<float>();
    for (int r = 0; r < kRowBlock; ++r) {
      float largest = 0.0f;
      for (std::int64_t b = 0; b < layout_.blocks; ++b) {
        // One w8 step: the largest group of the block gets sub-scale 127 of 128.
        float step = 0.0f;
        for (std::int64_t g = b * per_block; g < std::min(groups, (b + 1) * per_block); ++g) {
          const float scale = scales[g * kRowBlock + r];
          step = std::max(step, scale < 0.0f ? -scale : scale);
        }
        if (format_ == WeightFormat::q4) step *= 128.0f / 127.0f;
        if (format_ == WeightFormat::q6) step *= 32.0f / 127.0f;
        inverse[b * kRowBlock + r] = step;
        largest = std::max(largest, step);
      }
      const float row = amax_[r] < kSmallestRow ? 0.0f : amax_[r] * largest;
      std::memcpy(to + r * 4, &row, 4);
      for (std::int64_t b = 0; b < layout_.blocks; ++b) {
        float ratio = largest == 0.0f ? 0.0f : inverse[b * kRowBlock + r] / largest;
        if (is_signed && b < groups && scales[b * kRowBlock + r] < 0.0f) ratio = -ratio;
        const std::uint16_t block = f32_to_f16(ratio);
        std::memcpy(to + layout_.block_offset + (b * kRowBlock + r) * 2, &block, 2);
        const float step = f16_to_f32(block) * largest;
        inverse[b * kRowBlock + r] = step == 0.0f ? 0.0f : 1.0f / step;
      }
    }
  }

  // In some formats the code of a zero is not zero.
  void clear_padding_rows() {
    std::uint8_t* codes = codes_.as<std::uint8_t>();
    if (rows_ == kRowBlock) return;
    for (std::int64_t k = 0; k < from_.cols; ++k) {
      for (std::int64_t r = rows_; r < kRowBlock; ++r) codes[k * kRowBlock + r] = 0;
    }
  }

  WeightFormat format_;
  StoredMatrix from_;
  const PackSteps& steps_;
  WeightLayout layout_;
  AlignedBuffer tile_;  // [16][kPackTile]
  AlignedBuffer columns_, codes_, scales_, inverse_;
  float amax_[kRowBlock] = {};
  std::int64_t rows_ = kRowBlock;  // of the block at hand
};

// A row block of iq4_xs as iq4g32h by way of iq4_nl, whose codes it has; false where a scale is not
// finite as f16. `blocks` is work space.
bool pack_iq4_xs(const StoredMatrix& from, std::int64_t index, std::vector<std::uint8_t>* blocks,
                 std::uint8_t* to) {
  const std::int64_t per_row = from.cols / 256, row_bytes = per_row * 8 * 18;
  const std::int64_t first = index * kRowBlock;
  const std::int64_t rows = std::min<std::int64_t>(kRowBlock, from.rows - first);
  blocks->resize(static_cast<std::size_t>(rows * row_bytes));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint8_t* row = from.data + (first + r) * from.row_bytes;
    if (!iq4_xs_to_iq4_nl(row, per_row, blocks->data() + r * row_bytes)) return false;
  }
  const BlockMatrix matrix{blocks->data(), rows, from.cols, row_bytes};
  pack_row_blocks(WeightFormat::iq4g32h, matrix, 0, 1, to);
  return true;
}

}  // namespace

void pack_row_blocks(WeightFormat format, const StoredMatrix& from, std::int64_t begin,
                     std::int64_t end, std::uint8_t* to) {
  if (holds_exactly(format, from.type)) {
    const BlockMatrix blocks{from.data, from.rows, from.cols, from.row_bytes};
    return pack_row_blocks(format, blocks, begin, end, to);
  }
  const std::int64_t bytes = weight_layout(format, from.rows, from.cols).row_block_bytes;
  const bool same_codes = format == WeightFormat::iq4g32h && from.type == StoredType::iq4_xs;
  const FloatEnv environment;
  RowBlockPacker packer(format, from, steps_of_machine());
  std::vector<std::uint8_t> blocks;
  for (std::int64_t b = begin; b < end; ++b) {
    if (!same_codes || !pack_iq4_xs(from, b, &blocks, to + b * bytes)) {
      packer.pack(b, to + b * bytes);
    }
  }
}

}  // namespace musespark

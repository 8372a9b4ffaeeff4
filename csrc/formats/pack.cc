#include "formats/pack.h"

#include <algorithm>
#include <cmath>
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

static_assert(kPackGroup == kStoredGroup);
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

// Columns that get a scale of their own from PackSteps::fit.
std::int64_t group_columns(WeightFormat format) {
  return format == WeightFormat::q8         ? kBlockQ8
         : format == WeightFormat::q8g1024h ? kBlockQ8Wide
                                            : kSubGroup;
}

// Work space of one row block, reused for the next.
class RowBlockPacker {
 public:
  RowBlockPacker(WeightFormat format, const StoredMatrix& from, const PackGuide& guide,
                 const PackSteps& steps)
      : format_(format),
        from_(from),
        guide_(guide),
        steps_(steps),
        layout_(weight_layout(format, from.rows, from.cols)),
        tile_(std::max(sizeof(PackTile), kPackTile * kRowBlock * sizeof(float))),
        columns_(static_cast<std::size_t>(layout_.padded_cols) * kRowBlock * sizeof(float)) {
    if (!is_quantized(format)) return;
    groups_ = (from.cols + group_columns(format) - 1) / group_columns(format);
    const auto padded = static_cast<std::size_t>(layout_.padded_cols);
    codes_ = AlignedBuffer(padded * kRowBlock);
    scales_ = AlignedBuffer(padded / kSubGroup * kRowBlock * sizeof(float));
    const auto floats_of_blocks = static_cast<std::size_t>(layout_.blocks) * kRowBlock * 4;
    inverse_ = AlignedBuffer(floats_of_blocks);
    step_ = AlignedBuffer(floats_of_blocks);
    if (!guide.factor) return;
    exact_ = AlignedBuffer(columns_.size());
    missed_ = AlignedBuffer(columns_.size());
  }

  void pack(std::int64_t index, std::uint8_t* to) {
    load(index * kRowBlock);
    if (format_ == WeightFormat::f32) {
      std::memcpy(to, columns_.data(), static_cast<std::size_t>(layout_.row_block_bytes));
    } else if (format_ == WeightFormat::bf16) {
      std::memset(to, 0, static_cast<std::size_t>(layout_.row_block_bytes));
      write_bf16(reinterpret_cast<std::uint16_t*>(to));
    } else {
      std::memset(to, 0, static_cast<std::size_t>(layout_.codes_offset));
      quantize(to);
    }
  }

 private:
  // Rows first .. first + 15 into columns_[k][r], zeros where the matrix has ended.
  void load(std::int64_t first) {
    rows_ = std::min<std::int64_t>(kRowBlock, from_.rows - first);
    std::uint32_t largest[kRowBlock] = {};
    if (rows_ < kRowBlock) std::memset(tile_.data(), 0, tile_.size());
    const bool has_blocks = stored_type_info(from_.type).values > 1;
    for (std::int64_t k = 0; k < from_.cols; k += kPackTile) {
      const std::int64_t count = std::min(kPackTile, from_.cols - k);
      float* columns = columns_.as<float>() + k * kRowBlock;
      has_blocks ? load_integers(first, k, count, columns, largest)
                 : load_floats(first, k, count, columns, largest);
    }
    for (std::int64_t r = 0; r < kRowBlock; ++r) {
      if (largest[r] >= 0x7f800000u) refuse(first + r);
    }
    std::memcpy(amax_, largest, sizeof amax_);
  }

  // Columns k .. k + count - 1 of the rows; k is a multiple of kPackTile.
  void load_floats(std::int64_t first, std::int64_t k, std::int64_t count, float* columns,
                   std::uint32_t* largest) {
    float* tile = tile_.as<float>();
    for (std::int64_t r = 0; r < rows_; ++r) {
      decode_stored(from_.type, at(first + r, k), count, tile + r * kPackTile);
    }
    steps_.turn(tile, count, columns, largest);
  }

  void load_integers(std::int64_t first, std::int64_t k, std::int64_t count, float* columns,
                     std::uint32_t* largest) {
    PackTile& tile = *tile_.as<PackTile>();
    const std::int64_t blocks = count / stored_type_info(from_.type).values;
    for (std::int64_t r = 0; r < rows_; ++r) {
      decode_integers(from_.type, at(first + r, k), blocks,
                      {tile.codes[r], &tile.scales[0][r], &tile.leasts[0][r], kRowBlock});
    }
    steps_.turn_integers(tile, count, columns, largest);
  }

  const std::uint8_t* at(std::int64_t row, std::int64_t k) const {
    const StoredTypeInfo& info = stored_type_info(from_.type);
    return from_.data + row * from_.row_bytes + k / info.values * info.bytes;
  }

  [[noreturn]] void refuse(std::int64_t row) const {
    std::vector<float> values(static_cast<std::size_t>(from_.cols));
    const std::int64_t blocks = from_.cols / stored_type_info(from_.type).values;
    decode_stored(from_.type, at(row, 0), blocks, values.data());
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
    float to_unit[kRowBlock];
    for (int r = 0; r < kRowBlock; ++r) {
      to_unit[r] = amax_[r] < kSmallestRow ? 0.0f : 1.0f / amax_[r];
    }
    const PackRows rows{format_,
                        from_.quick,
                        from_.cols,
                        block_columns(format_),
                        to_unit,
                        columns_.as<float>(),
                        scales_.as<float>(),
                        inverse_.as<float>(),
                        guide_.importance,
                        reinterpret_cast<std::int8_t*>(to + layout_.sub_offset),
                        codes_.as<std::uint8_t>()};
    const std::int64_t padding = layout_.padded_cols - from_.cols;
    std::memset(codes_.as<std::uint8_t>() + from_.cols * kRowBlock, 0,
                static_cast<std::size_t>(padding * kRowBlock));
    steps_.fit(rows);
    choose_row_scales(to);
    if (guide_.factor) {
      encode_fed(rows, to);
    } else {
      for (std::int64_t b = 0; b < layout_.blocks; ++b) choose_block_scale(b, to);
      steps_.encode(rows);
    }
    clear_padding_rows();
    steps_.lay_out(codes_.as<std::uint8_t>(), layout_.padded_cols, code_bits(format_),
                   to + layout_.codes_offset);
  }

  // Row scales from the groups' scales: a row's largest step of w8.
  void choose_row_scales(std::uint8_t* to) {
    float row[kRowBlock];
    std::fill(largest_, largest_ + kRowBlock, 0.0f);
    for (std::int64_t b = 0; b < layout_.blocks; ++b) {
      find_step(b);
      const float* step = step_.as<float>() + b * kRowBlock;
      for (int r = 0; r < kRowBlock; ++r) largest_[r] = std::max(largest_[r], step[r]);
    }
    for (int r = 0; r < kRowBlock; ++r) {
      row[r] = amax_[r] < kSmallestRow ? 0.0f : amax_[r] * largest_[r];
    }
    std::memcpy(to, row, sizeof row);
  }

  // The f16 scale of block b from its step, and what the step then is, with its inverse.
  void choose_block_scale(std::int64_t b, std::uint8_t* to) {
    const bool is_signed = block_columns(format_) == kBlockG32;  // else sub-scales have signs
    const float* scales = scales_.as<float>() + b * kRowBlock;
    float* step = step_.as<float>() + b * kRowBlock;
    float* inverse = inverse_.as<float>() + b * kRowBlock;
    float ratio[kRowBlock];
    for (int r = 0; r < kRowBlock; ++r) {
      ratio[r] = largest_[r] == 0.0f ? 0.0f : step[r] / largest_[r];
      if (is_signed && b < groups_ && scales[r] < 0.0f) ratio[r] = -ratio[r];
    }
    std::uint16_t block[kRowBlock];
    f32_to_f16(ratio, block, kRowBlock);
    std::memcpy(to + layout_.block_offset + b * kRowBlock * 2, block, sizeof block);
    f16_to_f32(block, ratio, kRowBlock);
    for (int r = 0; r < kRowBlock; ++r) {
      step[r] = ratio[r] * largest_[r];
      inverse[r] = step[r] == 0.0f ? 0.0f : 1.0f / step[r];
    }
  }

  // The w8 step of block b: its largest group gets sub-scale 127 of 128.
  void find_step(std::int64_t b) {
    const std::int64_t per_block = block_columns(format_) / group_columns(format_);
    const float factor = format_ == WeightFormat::q4   ? 128.0f / 127.0f
                         : format_ == WeightFormat::q6 ? 32.0f / 127.0f
                                                       : 1.0f;
    float* step = step_.as<float>() + b * kRowBlock;
    std::fill(step, step + kRowBlock, 0.0f);
    for (std::int64_t g = b * per_block; g < std::min(groups_, (b + 1) * per_block); ++g) {
      const float* scale = scales_.as<float>() + g * kRowBlock;
      for (int r = 0; r < kRowBlock; ++r) step[r] = std::max(step[r], std::fabs(scale[r]));
    }
    for (int r = 0; r < kRowBlock; ++r) step[r] *= factor;
  }

  // Scales and codes of one block after the other, errors fed forward.
  void encode_fed(const PackRows& rows, std::uint8_t* to) {
    std::memcpy(exact_.data(), columns_.data(), columns_.size());
    const PackFeedback feedback{guide_.factor, exact_.as<float>(), step_.as<float>(),
                                missed_.as<float>()};
    const std::int64_t width = group_columns(format_);
    for (std::int64_t b = 0; b < layout_.blocks; ++b) {
      const std::int64_t first = b * rows.block_cols;
      const std::int64_t end = std::min(from_.cols, first + rows.block_cols);
      if (first < end) steps_.carry(rows, feedback, 0, first, static_cast<int>(end - first));
      for (std::int64_t k = first; k < end; k += width) {
        steps_.refit(rows, k, static_cast<int>(std::min(end - k, width)));
      }
      find_step(b);
      choose_block_scale(b, to);
      for (std::int64_t k = first; k < end; k += width) {
        const int n = static_cast<int>(std::min(end - k, width));
        steps_.carry(rows, feedback, first, k, n);
        if (k > first) steps_.refit(rows, k, n);
        steps_.encode_fed(rows, feedback, k, n);
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
  PackGuide guide_;
  const PackSteps& steps_;
  WeightLayout layout_;
  AlignedBuffer tile_;  // floats [16][kPackTile], or a PackTile
  AlignedBuffer columns_, codes_, scales_;
  AlignedBuffer step_, inverse_;  // [blocks][16]: u of one w8
  AlignedBuffer exact_, missed_;  // feedback: as columns_
  float amax_[kRowBlock] = {};
  float largest_[kRowBlock] = {};  // step of a row
  std::int64_t rows_ = kRowBlock;  // of the block at hand
  std::int64_t groups_ = 0;
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
                     std::int64_t end, std::uint8_t* to, const PackGuide& guide) {
  if (holds_exactly(format, from.type)) {
    const BlockMatrix blocks{from.data, from.rows, from.cols, from.row_bytes};
    return pack_row_blocks(format, blocks, begin, end, to);
  }
  const std::int64_t bytes = weight_layout(format, from.rows, from.cols).row_block_bytes;
  const bool same_codes = format == WeightFormat::iq4g32h && from.type == StoredType::iq4_xs;
  const FloatEnv environment;
  RowBlockPacker packer(format, from, guide, steps_of_machine());
  std::vector<std::uint8_t> blocks;
  for (std::int64_t b = begin; b < end; ++b) {
    if (!same_codes || !pack_iq4_xs(from, b, &blocks, to + b * bytes)) {
      packer.pack(b, to + b * bytes);
    }
  }
}

}  // namespace musespark

// quantize_rows and matmul: every format, row counts around the tiles of every level, columns
// around its groups, blocks and panels.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"
#include "base/hash.h"
#include "cases.h"
#include "formats/weights_codec.h"
#include "kernels/qmatmul/qmatmul.h"

namespace musespark::digests {
namespace {

constexpr WeightFormat kFormats[] = {
    WeightFormat::f32,   WeightFormat::bf16,    WeightFormat::q8,     WeightFormat::q6,
    WeightFormat::q4,    WeightFormat::q8g32h,  WeightFormat::q4g32h, WeightFormat::iq4g32h,
    WeightFormat::mxfp4, WeightFormat::q8g1024h};

struct Shape {
  std::int64_t rows, cols, m;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {16, 64, 1},    {40, 1100, 1},  {33, 200, 2},
                             {17, 320, 3},  {40, 100, 4},   {33, 321, 5},   {16, 63, 6},
                             {20, 2112, 7}, {48, 256, 8},   {16, 1088, 11}, {5, 513, 16},
                             {19, 130, 37}, {16, 192, 131}, {3, 64, 515}};

// ties: halves, and the largest of each group such that they meet the rounding as they are.
enum class Kind { plain, extreme, nan, infinite, tiny, huge, ties };

// A packed matrix of random bytes: a file may hold any codes and sub-scales.
struct Packed {
  Array<std::uint8_t> bytes;
  PackedMatrix matrix;
};

void fill_scales(Random& random, const WeightLayout& layout, std::uint8_t* block) {
  float row[kRowBlock];
  random.fill(row);
  std::memcpy(block, row, sizeof row);
  for (std::int64_t i = 0; i < layout.blocks * kRowBlock; ++i) {
    // Every thirty-second is subnormal.
    const float scale = random.normal() * (random.below(32) ? 1.0f : 1e-6f);
    const std::uint16_t half = f32_to_f16(scale);
    std::memcpy(block + layout.block_offset + 2 * i, &half, 2);
  }
}

// Extreme: every code and sub-scale at an end of its range, in long runs, so that a sum that
// saturates or wraps shows.
void fill_codes(Random& random, bool extreme, std::uint8_t* from, std::uint8_t* end) {
  for (std::int64_t i = 0; from < end; ++from, ++i) {
    if (!extreme) {
      *from = static_cast<std::uint8_t>(random.word());
    } else {
      *from = i % 512 < 256 ? 0x80 : 0x7f;
    }
  }
}

void fill_packed(Random& random, Kind kind, Packed& to) {
  PackedMatrix& w = to.matrix;
  const WeightLayout layout = weight_layout(w.format, w.rows, w.cols);
  for (std::int64_t b = 0; b < layout.row_blocks; ++b) {
    std::uint8_t* block = to.bytes.data() + b * layout.row_block_bytes;
    std::uint8_t* end = block + layout.row_block_bytes;
    if (is_quantized(w.format)) {
      fill_scales(random, layout, block);
      fill_codes(random, kind == Kind::extreme, block + layout.sub_offset, end);
    } else if (w.format == WeightFormat::f32) {
      random.fill({reinterpret_cast<float*>(block), reinterpret_cast<float*>(end)});
    } else {
      for (std::uint8_t* p = block; p < end; p += 2) {
        const std::uint16_t half = f32_to_bf16(random.normal());
        std::memcpy(p, &half, 2);
      }
    }
  }
}

void fill_input(Random& random, Kind kind, std::int64_t cols, std::span<float> x) {
  random.fill(x);
  const auto size = static_cast<std::int64_t>(x.size());
  if (kind == Kind::nan) x[static_cast<std::size_t>(random.below(size))] = std::nanf("");
  if (kind == Kind::infinite) {
    x[static_cast<std::size_t>(random.below(size))] = -std::numeric_limits<float>::infinity();
  }
  for (std::int64_t i = 0; i < size; ++i) {
    float& value = x[static_cast<std::size_t>(i)];
    if (kind == Kind::tiny) value = std::ldexp(value, -static_cast<int>(i / cols % 50) - 90);
    if (kind == Kind::huge) value = std::copysign(3e38f, value);
    if (kind == Kind::ties) {
      value = i % cols % 64 == 0 ? -127.0f : static_cast<float>(random.below(252) - 126) + 0.5f;
    }
    if (kind == Kind::extreme) value = i % cols / 64 % 2 ? 1.0f : -1.0f;
    if (kind == Kind::plain && i % cols < 64 && i / cols % 3 == 1) value = 0.0f;
  }
}

// One call's rows, quantized at the level.
struct Quantized {
  Quantized(const KernelTable& kernels, std::span<float> x, std::int64_t m, std::int64_t cols,
            std::int64_t group)
      : kp((cols + kActGroup - 1) / kActGroup * kActGroup),
        groups(kp / kActGroup),
        q((m - 1) * (kp + 64) + kp),
        scale(m * groups),
        bias(m * groups),
        half_bias(2 * m * groups) {
    rows = {q.data(), scale.data(), bias.data(), half_bias.data(), m, kp, kp + 64, group};
    kernels.quantize_rows(x.data(), cols, m, cols, &rows);
  }

  Bytes bytes() {
    Bytes out;
    for (std::int64_t i = 0; i < rows.rows; ++i) append(out, q.data() + i * rows.stride, kp);
    append(out, scale.data(), scale.size());
    append(out, bias.data(), bias.size());
    append(out, half_bias.data(), half_bias.size());
    return out;
  }

  std::int64_t kp, groups;
  Array<std::int8_t> q;
  Array<float> scale;
  Array<std::int32_t> bias, half_bias;
  QuantizedRows rows;
};

// All of out, the floats between rows too, which no kernel may touch. A NaN is any NaN.
Bytes multiply(const KernelTable& kernels, const PackedMatrix& w, std::span<float> x,
               std::int64_t m, std::int64_t first_block) {
  Quantized xq(kernels, x, m, w.cols, act_scale_cols(w.format));
  const std::int64_t ldo = w.rows + 3;
  Array<float> out((m - 1) * ldo + w.rows);
  std::fill_n(out.data(), out.size(), -77.0f);
  Guarded scratch(matmul_scratch_bytes(w.format, w.cols, m));
  MatmulArgs args{};
  args.w = w;
  args.xq = &xq.rows;
  args.x = x.data();
  args.ldx = w.cols;
  args.m = m;
  args.block_begin = first_block;
  args.block_end = (w.rows + kRowBlock - 1) / kRowBlock;
  args.out = out.data();
  args.ldo = ldo;
  args.scratch = scratch.as<std::uint8_t>();
  kernels.matmul(&args);
  for (float& v : out.span()) {
    if (std::isnan(v)) v = __builtin_bit_cast(float, 0x7fc00000u);
  }
  Bytes bytes;
  append(bytes, out.data(), out.size());
  return bytes;
}

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"plain", "extreme", "nan", "infinite", "tiny", "huge", "ties"};
  return kNames[static_cast<int>(kind)];
}

void matmul_case(WeightFormat format, Shape shape, Kind kind, std::int64_t first_block = 0) {
  const WeightLayout layout = weight_layout(format, shape.rows, shape.cols);
  const std::string name = std::string("matmul/") + weight_format_name(format) + "/" +
                           std::to_string(shape.rows) + "x" + std::to_string(shape.cols) + "/m" +
                           std::to_string(shape.m) + "/" + name_of(kind);
  Random random(xxh64(name.data(), name.size()));
  Packed packed{Array<std::uint8_t>(layout.bytes), {}};
  packed.matrix = {packed.bytes.data(), layout.row_block_bytes, shape.rows, shape.cols, format};
  fill_packed(random, kind, packed);
  Array<float> x(shape.m * shape.cols);
  fill_input(random, kind, shape.cols, x.span());
  compare_levels(name, [&](const KernelTable& kernels) {
    return multiply(kernels, packed.matrix, x.span(), shape.m, first_block);
  });
}

void quantize_case(Shape shape, Kind kind, std::int64_t group) {
  const std::string name = "quantize_rows/" + std::to_string(group) + "/" +
                           std::to_string(shape.m) + "x" + std::to_string(shape.cols) + "/" +
                           name_of(kind);
  Random random(xxh64(name.data(), name.size()));
  Array<float> x(shape.m * shape.cols);
  fill_input(random, kind, shape.cols, x.span());
  compare_levels(name, [&](const KernelTable& kernels) {
    return Quantized(kernels, x.span(), shape.m, shape.cols, group).bytes();
  });
}

}  // namespace

void matmul_digests() {
  constexpr Kind kAll[] = {Kind::plain, Kind::extreme, Kind::nan, Kind::infinite,
                           Kind::tiny,  Kind::huge,    Kind::ties};
  for (const Kind kind : kAll) {
    for (const Shape shape : {Shape{0, 1, 3}, {0, 64, 1}, {0, 100, 60}, {0, 257, 60}}) {
      quantize_case(shape, kind, kActGroup);
      quantize_case(shape, kind, kBlockQ4);
    }
  }
  for (const WeightFormat format : kFormats) {
    for (const Shape shape : kShapes) matmul_case(format, shape, Kind::plain);
    for (const Kind kind : kAll) {
      if (kind == Kind::plain) continue;
      matmul_case(format, {33, 300, 3}, kind);
      matmul_case(format, {33, 300, 10}, kind);
    }
    matmul_case(format, {50, 65, 1}, Kind::plain, 2);
    matmul_case(format, {50, 65, 9}, Kind::plain, 2);
  }
  // More rows than the pairs of one pass at many columns (paired_rows).
  for (const WeightFormat format : {WeightFormat::q8, WeightFormat::q4, WeightFormat::mxfp4}) {
    matmul_case(format, {17, 16400, 67}, Kind::plain);
  }
}

}  // namespace musespark::digests

// What no level has a kernel for, and all of it must be the same: halves, elementary functions, and
// the bytes that packing gives.
#include <cmath>

#include "base/half.h"
#include "base/hash.h"
#include "base/math64.h"
#include "cases.h"
#include "formats/pack.h"
#include "formats/weights_codec.h"

namespace musespark::digests {
namespace {

void halves() {
  std::vector<float> from_f16, from_bf16;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    from_f16.push_back(f16_to_f32(static_cast<std::uint16_t>(bits)));
    from_bf16.push_back(bf16_to_f32(static_cast<std::uint16_t>(bits)));
  }
  Bytes bytes;
  append(bytes, from_f16.data(), 0x10000);
  append(bytes, from_bf16.data(), 0x10000);
  report("base/from_half", bytes);

  Random random(1);
  bytes.clear();
  for (int i = 0; i < 20000; ++i) {
    const float x = i % 2 ? random.any_finite() : random.normal() * 1000.0f;
    const std::uint16_t both[] = {f32_to_f16(x), f32_to_bf16(x)};
    append(bytes, both, 2);
  }
  report("base/to_half", bytes);
}

void functions() {
  Random random(2);
  Bytes bytes;
  for (int i = 0; i < 4000; ++i) {
    const double x = static_cast<double>(random.normal()) * 300.0;
    const double y = static_cast<double>(random.normal());
    const double all[] = {math64::exp(x), math64::log(std::fabs(x)), math64::pow(std::fabs(x), y),
                          math64::sin(x * 100.0), math64::cos(x * 100.0)};
    append(bytes, all, 5);
  }
  report("base/math64", bytes);
}

void pack(WeightFormat format, bool quick) {
  constexpr std::int64_t kRows = 19, kCols = 330;
  std::vector<float> values(kRows * kCols);
  Random random(3);
  random.fill(values);
  values[7] = 12.0f;
  for (std::int64_t k = 0; k < kCols; ++k) values[static_cast<std::size_t>(3 * kCols + k)] = 0.0f;
  const StoredMatrix from{reinterpret_cast<const std::uint8_t*>(values.data()),
                          StoredType::f32,
                          kRows,
                          kCols,
                          kCols * 4,
                          quick};
  const WeightLayout layout = weight_layout(format, kRows, kCols);
  Array<std::uint8_t> to(layout.bytes);
  pack_row_blocks(format, from, 0, layout.row_blocks, to.data());
  Bytes bytes;
  append(bytes, to.data(), layout.bytes);
  report(std::string("pack/") + weight_format_name(format) + (quick ? "/quick" : ""), bytes);
}

}  // namespace

void base_digests() {
  halves();
  functions();
  for (const WeightFormat format :
       {WeightFormat::f32, WeightFormat::bf16, WeightFormat::q8, WeightFormat::q6, WeightFormat::q4,
        WeightFormat::q8g32h, WeightFormat::q4g32h, WeightFormat::iq4g32h, WeightFormat::mxfp4,
        WeightFormat::q8g1024h}) {
    pack(format, false);
    if (is_quantized(format)) pack(format, true);
  }
}

}  // namespace musespark::digests

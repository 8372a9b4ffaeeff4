// One output at a time: the specification, and what vector kernels do where they do not reach.
#include <cstdint>

#include "kernels/image/image.h"

namespace musespark {
namespace {

inline std::uint8_t rounded_byte(std::int32_t sum) {
  const std::int32_t value = sum >> kResampleBits;
  return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Pixel `index` of an output row.
inline void plain_pixel(const ResampleAxis* axis, std::int64_t index, std::int64_t channels,
                        const std::uint8_t* in, std::uint8_t* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  const std::uint8_t* from = in + axis->first[index] * channels;
  for (std::int64_t c = 0; c < channels; ++c) {
    std::int32_t sum = 1 << (kResampleBits - 1);
    for (std::int64_t t = 0; t < axis->count[index]; ++t) {
      sum += (high[t] * 65536 + low[t]) * from[t * channels + c];
    }
    out[index * channels + c] = rounded_byte(sum);
  }
}

// Bytes [begin, end) of output row `index`.
inline void plain_column(const ResampleAxis* axis, std::int64_t index, std::int64_t begin,
                         std::int64_t end, const std::uint8_t* const* in, std::uint8_t* out) {
  const std::int16_t* high = axis->high + index * axis->stride;
  const std::int16_t* low = axis->low + index * axis->stride;
  for (std::int64_t i = begin; i < end; ++i) {
    std::int32_t sum = 1 << (kResampleBits - 1);
    for (std::int64_t t = 0; t < axis->count[index]; ++t) {
      sum += (high[t] * 65536 + low[t]) * in[t][i];
    }
    out[i] = rounded_byte(sum);
  }
}

}  // namespace
}  // namespace musespark

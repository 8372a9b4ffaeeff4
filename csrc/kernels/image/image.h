// Contract of the image kernels: the two passes of a separable resampler on bytes, same bits on
// every instruction set.
//
// An output of either pass is clamp((2^21 + sum weight[t] * byte[t]) >> 22, 0, 255) over its taps:
// weights are integers of 22 fractional bits, sums are exact in int32 (ops/resample_axis.cc refuses
// weights whose sum could pass it). A weight is kept as high * 65536 + low, both int16, because
// that is what vectors multiply by.
#pragma once

#include <cstdint>

namespace musespark {

inline constexpr int kResampleBits = 22;
inline constexpr int kResampleStride = 16;  // the taps of an output have room for a multiple of it
inline constexpr int kResampleRows = 4;     // source rows that one call of resample_rows takes

// The weights along one axis; zero for taps [count, stride) of an output.
struct ResampleAxis {
  std::int64_t size;          // outputs
  std::int64_t stride;        // a multiple of kResampleStride
  const std::int32_t* first;  // [size] the input that tap 0 stands on
  const std::int32_t* count;  // [size] taps, at least 1; first + count <= the input's length
  const std::int16_t* high;   // [size][stride]
  const std::int16_t* low;    // [size][stride]
};

struct ImageKernels {
  // Along a row: out[r] [axis.size][channels] from in[r] [width][channels], r < rows. rows is
  // between 1 and kResampleRows, channels 1, 3 or 4; no byte past a row's end is read or written;
  // in and out do not overlap.
  void (*resample_rows)(const ResampleAxis* axis, std::int64_t channels, std::int64_t width,
                        std::int64_t rows, const std::uint8_t* const* in, std::uint8_t* const* out);
  // Across rows: output `index` of the axis, [n] bytes; in[t] is the row of its tap t, t < count.
  void (*resample_column)(const ResampleAxis* axis, std::int64_t index, std::int64_t n,
                          const std::uint8_t* const* in, std::uint8_t* out);
};

}  // namespace musespark

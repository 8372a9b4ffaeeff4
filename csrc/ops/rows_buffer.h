// Room for activation rows, and carving such rooms out of one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "ops/linear.h"

namespace musespark {

// Room for `rows` rows of up to `cols` columns: floats, quantized, or both.
struct RowsBuffer {
  float* x = nullptr;
  QuantizedRows q{};

  // The first `rows` x `cols` of it in the forms asked for. Floats are there if `floats` or if the
  // buffer is where they are made on the way to the quantized form.
  Rows view(std::int64_t rows, std::int64_t cols, const Needs& needs, bool through_floats) const {
    Rows out;
    out.rows = rows;
    out.cols = cols;
    out.ldx = padded(cols);
    if (needs.floats || through_floats) out.x = x;
    if (needs.quantized) {
      out.q = q;
      out.q.rows = rows;
      out.q.cols = padded_groups(cols);
      out.q.stride = spread(out.q.cols);
    }
    return out;
  }
  static std::int64_t padded(std::int64_t cols) { return (cols + 15) / 16 * 16; }
  static std::int64_t padded_groups(std::int64_t cols) {
    return (cols + kActGroup - 1) / kActGroup * kActGroup;
  }
  // Bytes between quantized rows: not a multiple of 4096, for such rows share a few cache sets.
  static std::int64_t spread(std::int64_t bytes) {
    return bytes % 4096 == 0 ? bytes + static_cast<std::int64_t>(kCacheLine) : bytes;
  }
};

// Hands out cache-line aligned pieces from `base` on; with base null it only measures.
struct Carver {
  std::byte* base;
  std::size_t used = 0;

  template <class T>
  T* take(std::int64_t count) {
    auto* at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used +=
        (static_cast<std::size_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return at;
  }
  float* floats(std::int64_t rows, std::int64_t cols) {
    return take<float>(rows * RowsBuffer::padded(cols));
  }
  RowsBuffer rows(std::int64_t rows, std::int64_t cols, bool floats) {
    const std::int64_t kp = RowsBuffer::padded_groups(cols);
    RowsBuffer out;
    if (floats) out.x = take<float>(rows * RowsBuffer::padded(cols));
    out.q.q = take<std::int8_t>(rows * RowsBuffer::spread(kp));
    out.q.scale = take<float>(rows * kp / kActGroup);
    out.q.bias = take<std::int32_t>(rows * kp / kActGroup);
    out.q.half_bias = take<std::int32_t>(2 * rows * kp / kActGroup);
    return out;
  }
};

// Runs carve(Carver*) over `buffer`, which is made larger first where it has to be. Throws
// MemoryBudgetExceeded; what was carved before is gone then.
template <class Carve>
void carve_from(AlignedBuffer& buffer, Carve&& carve) {
  Carver measure{nullptr};
  carve(&measure);
  if (buffer.size() < measure.used) {
    buffer = AlignedBuffer();
    buffer = AlignedBuffer(measure.used);
  }
  Carver carver{buffer.data()};
  carve(&carver);
}

}  // namespace musespark

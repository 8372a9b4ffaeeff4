// Room for activation rows, and carving such rooms out of one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "ops/linear.h"

namespace musespark {

// Room for `rows` rows of up to `cols` columns: floats, one quantized form, or more.
struct RowsBuffer {
  float* x = nullptr;
  QuantizedRows q{};                // whichever form is asked for
  QuantizedRows second{}, third{};  // more, where several are

  // The first `rows` x `cols` of it in the forms asked for. Floats are there if `floats` or if the
  // buffer is where they are made on the way to the quantized form.
  Rows view(std::int64_t rows, std::int64_t cols, const Needs& needs, bool through_floats) const {
    Rows out;
    out.rows = rows;
    out.cols = cols;
    out.ldx = padded(cols);
    if (needs.floats || through_floats) out.x = x;
    const QuantizedRows* room[] = {&q, &second, &third};
    const QuantizedRows** next = room;
    if (needs.q64) out.q64 = form(**next++, rows, cols, kActGroup);
    if (needs.q256) out.q256 = form(**next++, rows, cols, kBlockQ4);
    if (needs.q1024) out.q1024 = form(**next++, rows, cols, kBlockQ8Wide);
    return out;
  }
  static QuantizedRows form(QuantizedRows room, std::int64_t rows, std::int64_t cols,
                            std::int64_t group) {
    room.rows = rows;
    room.cols = padded_groups(cols);
    room.stride = spread(room.cols);
    room.group = group;
    return room;
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
  // forms: as many quantized ones as some view will ask for; one is always there.
  RowsBuffer rows(std::int64_t rows, std::int64_t cols, bool floats, int forms) {
    RowsBuffer out;
    if (floats) out.x = take<float>(rows * RowsBuffer::padded(cols));
    out.q = quantized(rows, cols);
    if (forms > 1) out.second = quantized(rows, cols);
    if (forms > 2) out.third = quantized(rows, cols);
    return out;
  }
  QuantizedRows quantized(std::int64_t rows, std::int64_t cols) {
    const std::int64_t kp = RowsBuffer::padded_groups(cols);
    QuantizedRows out{};
    out.q = take<std::int8_t>(rows * RowsBuffer::spread(kp));
    out.scale = take<float>(rows * kp / kActGroup);
    out.bias = take<std::int32_t>(rows * kp / kActGroup);
    out.half_bias = take<std::int32_t>(2 * rows * kp / kActGroup);
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

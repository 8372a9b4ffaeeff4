// The activations of a step, carved out of one allocation that grows to the largest step so far.
#pragma once

#include <algorithm>
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
      out.q.cols = (cols + kActGroup - 1) / kActGroup * kActGroup;
    }
    return out;
  }
  static std::int64_t padded(std::int64_t cols) { return (cols + 15) / 16 * 16; }
};

// Widest of everything over the layers of a model.
struct StepWidths {
  std::int64_t hidden = 0;
  std::int64_t qkv = 0;         // q, k and v columns of a layer
  std::int64_t gate = 0;        // attention gate columns, 0: no layer has one
  std::int64_t heads = 0;       // heads x padded head dimension
  std::int64_t joined = 0;      // heads x head dimension
  std::int64_t hidden_mlp = 0;  // intermediate
  bool mlp_floats = false;      // some down matrix reads floats
};

class Workspace {
 public:
  // Makes room for a step of `rows` rows. Throws MemoryBudgetExceeded; unusable until the next
  // successful call then.
  void reserve(const StepWidths& w, std::int64_t rows) {
    Carver measure{nullptr};
    carve(w, rows, &measure);
    if (buffer_.size() < measure.used) {
      buffer_ = AlignedBuffer();
      buffer_ = AlignedBuffer(measure.used);
    }
    Carver carver{buffer_.data()};
    carve(w, rows, &carver);
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(buffer_.size()); }

  float* residual = nullptr;  // [rows][padded hidden]
  float* delta = nullptr;     // [rows][padded hidden]
  float* qkv = nullptr;       // [rows][padded qkv]
  float* gate = nullptr;      // [rows][padded gate]
  float* queries = nullptr;   // [kv heads][rows][group][Dp]
  float* heads = nullptr;     // [kv heads][rows][group][Dp]
  RowsBuffer normed, joined, mlp;

 private:
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
    RowsBuffer rows(std::int64_t rows, std::int64_t cols, bool floats) {
      const std::int64_t kp = (cols + kActGroup - 1) / kActGroup * kActGroup;
      RowsBuffer out;
      if (floats) out.x = take<float>(rows * RowsBuffer::padded(cols));
      out.q.q = take<std::int8_t>(rows * kp);
      out.q.scale = take<float>(rows * kp / kActGroup);
      out.q.bias = take<std::int32_t>(rows * kp / kActGroup);
      out.q.half_bias = take<std::int32_t>(2 * rows * kp / kActGroup);
      return out;
    }
  };

  void carve(const StepWidths& w, std::int64_t rows, Carver* c) {
    residual = c->take<float>(rows * RowsBuffer::padded(w.hidden));
    delta = c->take<float>(rows * RowsBuffer::padded(w.hidden));
    qkv = c->take<float>(rows * RowsBuffer::padded(w.qkv));
    gate = c->take<float>(rows * RowsBuffer::padded(w.gate));
    queries = c->take<float>(rows * w.heads);
    heads = c->take<float>(rows * w.heads);
    normed = c->rows(rows, w.hidden, true);
    joined = c->rows(rows, w.joined, true);
    mlp = c->rows(rows, w.hidden_mlp, w.mlp_floats);
  }

  AlignedBuffer buffer_;
};

}  // namespace musespark

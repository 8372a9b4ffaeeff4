// The activations of a step, carved out of one allocation that grows to the largest step so far.
#pragma once

#include <cstdint>

#include "model/spec.h"
#include "ops/rows_buffer.h"

namespace musespark {

// Widest of everything over the layers of a model.
struct StepWidths {
  std::int64_t hidden = 0;
  std::int64_t qkv = 0;         // q, k and v columns of a layer
  std::int64_t gate = 0;        // attention gate columns, 0: no layer has one
  std::int64_t heads = 0;       // heads x padded head dimension
  std::int64_t joined = 0;      // heads x head dimension
  std::int64_t hidden_mlp = 0;  // intermediate
  bool mlp_floats = true;       // some down matrix reads floats
  int forms = 2;                // quantized ones that some input is read in
};

StepWidths step_widths(const ModelSpec& spec);

class Workspace {
 public:
  // Makes room for a step of `rows` rows. Throws MemoryBudgetExceeded; unusable until the next
  // successful call then.
  void reserve(const StepWidths& w, std::int64_t rows) {
    carve_from(buffer_, [&](Carver* carver) { carve(w, rows, carver); });
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(buffer_.size()); }
  static std::int64_t bytes_for(const StepWidths& w, std::int64_t rows) {
    Carver measure{nullptr};
    Workspace().carve(w, rows, &measure);
    return static_cast<std::int64_t>(measure.used);
  }

  float* residual = nullptr;  // [rows][padded hidden]
  float* delta = nullptr;     // [rows][padded hidden]
  float* qkv = nullptr;       // [rows][padded qkv]
  float* gate = nullptr;      // [rows][padded gate]
  float* queries = nullptr;   // [kv heads][rows][group][Dp]
  float* heads = nullptr;     // [kv heads][rows][group][Dp]
  RowsBuffer normed, joined, mlp;

 private:
  void carve(const StepWidths& w, std::int64_t rows, Carver* c) {
    residual = c->floats(rows, w.hidden);
    delta = c->floats(rows, w.hidden);
    qkv = c->floats(rows, w.qkv);
    gate = c->floats(rows, w.gate);
    queries = c->take<float>(rows * w.heads);
    heads = c->take<float>(rows * w.heads);
    normed = c->rows(rows, w.hidden, true, w.forms);
    joined = c->rows(rows, w.joined, true, w.forms);
    mlp = c->rows(rows, w.hidden_mlp, w.mlp_floats, w.forms);
  }

  AlignedBuffer buffer_;
};

}  // namespace musespark

// Matrix products over row blocks of packed matrices, and the rows that go into them.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/dispatch.h"
#include "ops/jobs.h"

namespace musespark {

// A packed matrix with its bias, one float per output row, or null.
struct Matrix {
  PackedMatrix packed{};
  const float* bias = nullptr;

  bool quantized() const {
    return packed.format != WeightFormat::f32 && packed.format != WeightFormat::bf16;
  }
  std::int64_t row_blocks() const { return (packed.rows + kRowBlock - 1) / kRowBlock; }
};

// Activation rows: floats, a quantized form, or several; what the readers need (see Needs).
struct Rows {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  float* x = nullptr;  // [rows][ldx], cols of each; null: no floats
  std::int64_t ldx = 0;
  // A scale per so many columns; q null: not in this form.
  QuantizedRows q64{}, q256{}, q1024{};

  const QuantizedRows& quantized(WeightFormat format) const {
    const std::int64_t group = act_scale_cols(format);
    return group == kActGroup ? q64 : group == kBlockQ4 ? q256 : q1024;
  }
  bool any_quantized() const { return q64.q || q256.q || q1024.q; }
  // Rows first .. first + count - 1, as a view.
  Rows slice(std::int64_t first, std::int64_t count) const {
    Rows out{count, cols, x ? x + first * ldx : nullptr, ldx, {}, {}, {}};
    if (q64.q) out.q64 = q64.slice(first, count);
    if (q256.q) out.q256 = q256.slice(first, count);
    if (q1024.q) out.q1024 = q1024.slice(first, count);
    return out;
  }
  // Quantizes `n` columns from `first` on of row `index`, in each form there is. With more columns
  // to follow, `first` and `n` are multiples of the columns that share a scale, in each form.
  void quantize(const KernelTable& kernels, std::int64_t index, std::int64_t first,
                const float* from, std::int64_t n) const {
    for (const QuantizedRows* form : {&q64, &q256, &q1024}) {
      if (!form->q) continue;
      const std::int64_t padded = (n + kActGroup - 1) / kActGroup * kActGroup;
      const QuantizedRows part = form->part(index, first, padded);
      kernels.quantize_rows(from, n, 1, n, &part);
    }
  }
  void quantize(const KernelTable& kernels, std::int64_t index, const float* from) const {
    quantize(kernels, index, 0, from, cols);
  }
};

// Which forms of its input a set of matrices reads.
struct Needs {
  bool floats = false;
  bool q64 = false, q256 = false, q1024 = false;

  void add(const Matrix& matrix) {
    if (!matrix.quantized()) {
      floats = true;
    } else {
      const std::int64_t group = act_scale_cols(matrix.packed.format);
      (group == kActGroup ? q64 : group == kBlockQ4 ? q256 : q1024) = true;
    }
  }
  void add(const Needs& other) {
    floats |= other.floats;
    q64 |= other.q64;
    q256 |= other.q256;
    q1024 |= other.q1024;
  }
  int forms() const { return q64 + q256 + q1024; }  // quantized ones
};

// One product of a job: out = in . matrix^T + bias.
struct LinearOutput {
  const Rows* in;
  const Matrix* matrix;
  float* out;  // [in->rows][ldo], matrix->packed.rows of each
  std::int64_t ldo;
};

// How gate and up become one: f(gate) * up; or, where limit > 0 (f is silu then), with
// g = min(gate, limit) and u = clamp(up, -limit, limit): (g * (u + 1)) * sigmoid(alpha * g).
struct Gating {
  Activation activation = Activation::silu;
  float limit = 0;
  float alpha = 1.0f;
};

// One gated product of a job: out = f(in . gate^T + bias) * (in . up^T + bias), quantized where
// out.q is there. gate null: out = f(in . up^T + bias).
struct GatedOutput {
  const Rows* in;
  const Matrix* gate;
  const Matrix* up;
  Rows out;
};

// Makes the quantized forms that `rows` has from its floats.
void quantize_rows(Jobs& jobs, const KernelTable& kernels, const Rows& rows);

// Bytes of scratch per thread these operations use with a matrix of `cols` columns and up to `rows`
// rows of activations.
std::int64_t linear_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t rows);
std::int64_t gated_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t rows);

// All products as one job. Throws InvalidRequest where shapes or forms do not match.
void linear(Jobs& jobs, const KernelTable& kernels, std::span<const LinearOutput> outputs);
void gated_linear(Jobs& jobs, const KernelTable& kernels, const Gating& gating,
                  std::span<const GatedOutput> outputs);

// What gated_linear does with finished gate and up [out.rows][ld], to the same bits: out = f(gate)
// * up, quantized where out.q is there. gate null: out = f(up). Overwrites both.
void gate_rows(Jobs& jobs, const KernelTable& kernels, const Gating& gating, float* gate, float* up,
               std::int64_t ld, const Rows& out);

}  // namespace musespark

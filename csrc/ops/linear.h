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

// Activation rows: floats, their quantized form, or both; what the reader needs (see Needs).
struct Rows {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  float* x = nullptr;  // [rows][ldx], cols of each; null: no floats
  std::int64_t ldx = 0;
  QuantizedRows q{};  // q.q null: not quantized

  // The one row `index`, as a view.
  QuantizedRows quantized_row(std::int64_t index) const { return q.part(index, 0, q.cols); }
};

// Which forms of its input a set of matrices reads.
struct Needs {
  bool floats = false;
  bool quantized = false;
  void add(const Matrix& matrix) { (matrix.quantized() ? quantized : floats) = true; }
};

struct LinearOutput {
  const Matrix* matrix;
  float* out;  // [in.rows][ldo], matrix.rows of each
  std::int64_t ldo;
};

// Bytes of scratch per thread these operations use.
std::int64_t linear_scratch_bytes(const Matrix& matrix, std::int64_t rows);
std::int64_t gated_scratch_bytes(const Matrix& gate, const Matrix& up, std::int64_t rows);

// out = in . W^T + bias for several matrices that read the same rows, as one job.
// Throws InvalidRequest where shapes or forms do not match.
void linear(Jobs& jobs, const KernelTable& kernels, const Rows& in,
            std::span<const LinearOutput> outputs);

// out = f(in . gate^T + bias) * (in . up^T + bias), quantized where out.q is there, as one job.
// gate null: out = f(in . up^T + bias).
void gated_linear(Jobs& jobs, const KernelTable& kernels, const Rows& in, const Matrix* gate,
                  const Matrix& up, Activation activation, const Rows& out);

}  // namespace musespark

#include "ops/linear.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Columns of a gated product made at a time: whole activation groups, about what stays in the
// first-level cache (M = 1) or second-level cache (large M) for gate and up together.
constexpr std::int64_t kGatedFloats = 1 << 14;

// Row blocks that stay together when a product is cut for threads: matrix-vector kernels stream
// eight row blocks at once, the others take panels of up to four.
std::int64_t row_block_grain(std::int64_t rows) { return rows == 1 ? 8 : 4; }

// One row streams the weights from memory, best in long runs; many rows compute, and short cuts
// keep threads level.
int row_block_cuts(std::int64_t rows) { return rows == 1 ? 4 : 8; }

std::string shape_of(const Matrix& m) {
  return std::to_string(m.packed.rows) + " x " + std::to_string(m.packed.cols);
}

void check_input(const char* op, const Rows& in, const Matrix& matrix) {
  if (matrix.packed.cols != in.cols) {
    throw InvalidRequest(std::string("[") + op + "] rows of " + std::to_string(in.cols) +
                         " columns into a matrix of " + shape_of(matrix));
  }
  if (matrix.quantized() ? in.q.q == nullptr : in.x == nullptr) {
    throw InvalidRequest(std::string("[") + op + "] a matrix of format " +
                         std::to_string(static_cast<int>(matrix.packed.format)) + " needs " +
                         (matrix.quantized() ? "quantized" : "float") + " rows");
  }
}

// Estimated nanoseconds of one row block: streaming its bytes, or the products.
double row_block_cost(const Matrix& matrix, std::int64_t rows) {
  const double bytes = static_cast<double>(matrix.packed.row_block_bytes);
  const double products =
      static_cast<double>(kRowBlock * matrix.packed.cols) * static_cast<double>(rows);
  return std::max(bytes / 14.0, products / (matrix.quantized() ? 80.0 : 8.0));
}

// Rows [0, in.rows) times row blocks [begin, end) of the matrix, bias added; out is where column
// 16 * begin of row 0 goes.
void multiply(const KernelTable& kernels, const Matrix& matrix, const Rows& in, std::int64_t begin,
              std::int64_t end, float* out, std::int64_t ldo, void* scratch) {
  const std::int64_t first = begin * kRowBlock;
  const std::int64_t count = std::min(end * kRowBlock, matrix.packed.rows) - first;
  MatmulArgs args{};
  args.w = matrix.packed;
  args.w.data += begin * matrix.packed.row_block_bytes;
  args.w.rows = count;
  args.xq = &in.q;
  args.x = in.x;
  args.ldx = in.ldx;
  args.m = in.rows;
  args.block_begin = 0;
  args.block_end = end - begin;
  args.out = out;
  args.ldo = ldo;
  args.scratch = scratch;
  kernels.matmul(&args);
  if (!matrix.bias) return;
  for (std::int64_t r = 0; r < in.rows; ++r) {
    kernels.rowwise.add(out + r * ldo, matrix.bias + first, count, out + r * ldo);
  }
}

std::int64_t gated_groups(std::int64_t rows) {
  return std::max<std::int64_t>(1, kGatedFloats / (kActGroup * rows));
}

}  // namespace

std::int64_t linear_scratch_bytes(const Matrix& matrix, std::int64_t rows) {
  return matmul_scratch_bytes(matrix.packed.format, matrix.packed.cols, rows);
}

std::int64_t gated_scratch_bytes(const Matrix& gate, const Matrix& up, std::int64_t rows) {
  const std::int64_t matmul =
      std::max(linear_scratch_bytes(gate, rows), linear_scratch_bytes(up, rows));
  // Also enough for any smaller number of rows: the last layer may run with fewer.
  const std::int64_t floats = 2 * kActGroup * std::max(rows, kGatedFloats / kActGroup);
  return (matmul + 63) / 64 * 64 + floats * static_cast<std::int64_t>(sizeof(float));
}

void linear(Jobs& jobs, const KernelTable& kernels, const Rows& in,
            std::span<const LinearOutput> outputs) {
  std::int64_t blocks = 0;
  double cost = 0;
  for (const LinearOutput& output : outputs) {
    check_input("linear", in, *output.matrix);
    blocks += output.matrix->row_blocks();
    cost +=
        row_block_cost(*output.matrix, in.rows) * static_cast<double>(output.matrix->row_blocks());
  }
  if (blocks == 0 || in.rows == 0) return;
  jobs.run(
      blocks, cost / static_cast<double>(blocks),
      [&](std::int64_t begin, std::int64_t end, int worker) {
        std::int64_t base = 0;  // row blocks of the matrices before this one
        for (const LinearOutput& output : outputs) {
          const std::int64_t own = output.matrix->row_blocks();
          const std::int64_t from = std::max(begin - base, std::int64_t{0});
          const std::int64_t to = std::min(end - base, own);
          if (from < to) {
            multiply(kernels, *output.matrix, in, from, to, output.out + from * kRowBlock,
                     output.ldo, jobs.scratch(worker));
          }
          base += own;
        }
      },
      row_block_grain(in.rows), row_block_cuts(in.rows));
}

void gated_linear(Jobs& jobs, const KernelTable& kernels, const Rows& in, const Matrix* gate,
                  const Matrix& up, Activation activation, const Rows& out) {
  check_input("gated_linear", in, up);
  if (gate) check_input("gated_linear", in, *gate);
  if ((gate && gate->packed.rows != up.packed.rows) || out.cols != up.packed.rows ||
      out.rows != in.rows) {
    throw InvalidRequest("[gated_linear] up " + shape_of(up) + ", gate " +
                         (gate ? shape_of(*gate) : "none") + ", out " + std::to_string(out.rows) +
                         " x " + std::to_string(out.cols) + " for " + std::to_string(in.rows) +
                         " rows");
  }
  const std::int64_t rows = in.rows;
  const std::int64_t groups = (out.cols + kActGroup - 1) / kActGroup;
  const std::int64_t at_once = gated_groups(rows);
  const std::int64_t matmul_bytes =
      std::max(gate ? linear_scratch_bytes(*gate, rows) : 0, linear_scratch_bytes(up, rows));
  const double cost = (kActGroup / kRowBlock) *
                          (row_block_cost(up, rows) + (gate ? row_block_cost(*gate, rows) : 0.0)) +
                      static_cast<double>(rows * kActGroup);

  const auto columns = [&](std::int64_t first_group, std::int64_t end_group, int worker) {
    const std::int64_t first = first_group * kActGroup;
    const std::int64_t count = std::min(end_group * kActGroup, out.cols) - first;
    const std::int64_t ld = (end_group - first_group) * kActGroup;
    auto* floats = reinterpret_cast<float*>(jobs.scratch(worker) + (matmul_bytes + 63) / 64 * 64);
    float* ups = floats + rows * ld;
    const std::int64_t begin = first / kRowBlock;
    const std::int64_t end = (first + count + kRowBlock - 1) / kRowBlock;
    if (gate) multiply(kernels, *gate, in, begin, end, floats, ld, jobs.scratch(worker));
    multiply(kernels, up, in, begin, end, ups, ld, jobs.scratch(worker));
    for (std::int64_t r = 0; r < rows; ++r) {
      float* hidden = out.x ? out.x + r * out.ldx + first : floats + r * ld;
      if (gate) {
        kernels.rowwise.activate_mul(activation, floats + r * ld, ups + r * ld, count, hidden);
      } else {
        kernels.rowwise.activate(activation, ups + r * ld, count, hidden);
      }
      if (!out.q.q) continue;
      const QuantizedRows part = out.q.part(r, first, ld);
      kernels.quantize_rows(hidden, count, 1, count, &part);
    }
  };
  jobs.run(
      groups, cost,
      [&](std::int64_t begin, std::int64_t end, int worker) {
        for (std::int64_t at = begin; at < end; at += at_once) {
          columns(at, std::min(at + at_once, end), worker);
        }
      },
      std::max<std::int64_t>(1, row_block_grain(rows) * kRowBlock / kActGroup),
      row_block_cuts(rows));
}

}  // namespace musespark

#include "ops/low_rank.h"

#include <algorithm>
#include <string>

#include "base/errors.h"
#include "ops/rows_buffer.h"

namespace musespark {
namespace {

// Rows and columns that one call of the kernel takes here: its result stays in the first-level
// cache until it is added. A has few rows (its rank), so threads share work by rows of x.
constexpr std::int64_t kSliceRows = 32;
constexpr std::int64_t kSliceBlocks = 8;  // row blocks of B

void check(const LowRankOutput& output) {
  const PackedMatrix& a = output.matrices->a.packed;
  const PackedMatrix& b = output.matrices->b.packed;
  if (output.matrices->a.quantized() || output.matrices->b.quantized()) {
    throw InvalidRequest("[low_rank] the matrices of an adapter are f32 or bf16");
  }
  if (a.cols == output.in.cols && b.cols == a.rows && output.in.x) return;
  throw InvalidRequest("[low_rank] rows of " + std::to_string(output.in.cols) +
                       (output.in.x ? "" : " without floats") + " into A " +
                       std::to_string(a.rows) + " x " + std::to_string(a.cols) + ", B " +
                       std::to_string(b.rows) + " x " + std::to_string(b.cols));
}

// Row blocks [begin, end) of B times the rows, added to the product's columns.
void add_product(const KernelTable& kernels, const LinearOutput& piece, std::int64_t begin,
                 std::int64_t end, void* scratch) {
  alignas(64) float product[kSliceRows * kSliceBlocks * kRowBlock];
  const PackedMatrix& b = piece.matrix->packed;
  for (std::int64_t at = begin; at < end; at += kSliceBlocks) {
    const std::int64_t to = std::min(at + kSliceBlocks, end);
    const std::int64_t first = at * kRowBlock;
    const std::int64_t count = std::min(to * kRowBlock, b.rows) - first;
    MatmulArgs args{};
    args.w = b;
    args.w.data += at * b.row_block_bytes;
    args.w.rows = count;
    args.x = piece.in->x;
    args.ldx = piece.in->ldx;
    args.m = piece.in->rows;
    args.block_begin = 0;
    args.block_end = to - at;
    args.out = product;
    args.ldo = kSliceBlocks * kRowBlock;
    args.scratch = scratch;
    kernels.matmul(&args);
    for (std::int64_t r = 0; r < piece.in->rows; ++r) {
      float* out = piece.out + r * piece.ldo + first;
      kernels.rowwise.add(out, product + r * args.ldo, count, out);
    }
  }
}

}  // namespace

// x . A^T of every slice.
void LowRankRunner::project(Jobs& jobs, const KernelTable& kernels,
                            std::span<const LowRankOutput> outputs) {
  std::int64_t floats = 0, slices = 0;
  for (const LowRankOutput& output : outputs) {
    check(output);
    floats += output.in.rows * RowsBuffer::padded(output.matrices->a.packed.rows);
    slices += (output.in.rows + kSliceRows - 1) / kSliceRows;
  }
  float* inner = nullptr;
  carve_from(buffer_, [&](Carver* carver) { inner = carver->take<float>(floats); });
  slices_.clear();
  inner_.clear();
  down_.clear();
  pieces_.clear();
  slices_.reserve(static_cast<std::size_t>(slices));  // pointers into these follow
  inner_.reserve(static_cast<std::size_t>(slices));
  for (const LowRankOutput& output : outputs) {
    const std::int64_t rank = output.matrices->a.packed.rows;
    const std::int64_t ld = RowsBuffer::padded(rank);
    for (std::int64_t first = 0; first < output.in.rows; first += kSliceRows) {
      const std::int64_t count = std::min(kSliceRows, output.in.rows - first);
      slices_.push_back(output.in.slice(first, count));
      inner_.push_back({count, rank, inner, ld, {}});
      down_.push_back({&slices_.back(), &output.matrices->a, inner, ld});
      pieces_.push_back(
          {&inner_.back(), &output.matrices->b, output.out + first * output.ldo, output.ldo});
      inner += count * ld;
    }
  }
  linear(jobs, kernels, down_);
}

void LowRankRunner::run(Jobs& jobs, const KernelTable& kernels,
                        std::span<const LowRankOutput> outputs) {
  if (outputs.empty()) return;
  project(jobs, kernels, outputs);
  std::int64_t items = 0;
  double cost = 0;
  for (const LinearOutput& piece : pieces_) {
    const std::int64_t blocks = piece.matrix->row_blocks();
    items += blocks;
    cost += static_cast<double>(blocks * kRowBlock * piece.in->cols * piece.in->rows) / 8.0;
  }
  const auto add = [&](std::int64_t begin, std::int64_t end, int worker) {
    std::int64_t base = 0;  // row blocks of the pieces before this one
    for (const LinearOutput& piece : pieces_) {
      if (base >= end) break;
      const std::int64_t blocks = piece.matrix->row_blocks();
      const std::int64_t from = std::max(begin - base, std::int64_t{0});
      const std::int64_t to = std::min(end - base, blocks);
      if (from < to) add_product(kernels, piece, from, to, jobs.scratch(worker));
      base += blocks;
    }
  };
  jobs.run(items, cost / static_cast<double>(items), add, kSliceBlocks);
}

}  // namespace musespark

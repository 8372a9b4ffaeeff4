#include "ops/linear.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Columns of a gated product made at a time: whole scales of activations, about what stays in the
// second-level cache for gate and up together. Half of it makes experts of 32 rows 3% slower.
constexpr std::int64_t kGatedFloats = 1 << 15;
// Where 1024 columns have to be made together: of so many rows at a time, the weights of those
// columns staying in the second-level cache.
constexpr std::int64_t kWideRows = 64;

// Row blocks that stay together when a product is cut for threads: kernels stream four at once, or
// take panels of up to four.
constexpr std::int64_t kRowBlockGrain = 4;

// Products of many rows are cut by rows too, rows outermost: a thread's share is then of the same
// rows in one operation after the other, and they stay in its second-level cache. Quantized weights
// are unpacked once for so many rows; of floats, as many as take so many bytes go together.
constexpr std::int64_t kPanelRows = 512;
constexpr std::int64_t kPanelBytes = 1 << 20;
constexpr std::int64_t kLeastPanelRows = 64;
constexpr std::int64_t kTileRows = 32;  // of kernels for many rows: panels are of whole tiles

struct RowRange {
  std::int64_t first, count;
};

std::string shape_of(const Matrix& m) {
  return std::to_string(m.packed.rows) + " x " + std::to_string(m.packed.cols);
}

void check_input(const char* op, const Rows& in, const Matrix& matrix) {
  if (matrix.packed.cols != in.cols) {
    throw InvalidRequest(std::string("[") + op + "] rows of " + std::to_string(in.cols) +
                         " columns into a matrix of " + shape_of(matrix));
  }
  const auto form = matrix.packed.format;
  if (matrix.quantized() ? in.quantized(form).q == nullptr : in.x == nullptr) {
    throw InvalidRequest(std::string("[") + op + "] a matrix of format " +
                         std::to_string(static_cast<int>(form)) + " needs " +
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

// Rows [0, in.rows) times row blocks [begin, end) of the matrix; out is where column 16 * begin of
// row 0 goes.
void multiply(const KernelTable& kernels, const Matrix& matrix, const Rows& in, std::int64_t begin,
              std::int64_t end, float* out, std::int64_t ldo, void* scratch) {
  const std::int64_t first = begin * kRowBlock;
  const std::int64_t count = std::min(end * kRowBlock, matrix.packed.rows) - first;
  MatmulArgs args{};
  args.w = matrix.packed;
  args.w.data += begin * matrix.packed.row_block_bytes;
  args.w.rows = count;
  args.xq = &in.quantized(matrix.packed.format);
  args.x = in.x;
  args.ldx = in.ldx;
  if (!matrix.quantized() && matrix.bias) args.bias = matrix.bias + first;
  args.m = in.rows;
  args.block_begin = 0;
  args.block_end = end - begin;
  args.out = out;
  args.ldo = ldo;
  args.scratch = scratch;
  kernels.matmul(&args);
}

// Adds the bias to `count` columns from `first` on; of float weights the kernel does.
void add_bias(const KernelTable& kernels, const Matrix& matrix, std::int64_t first,
              std::int64_t count, float* out) {
  if (matrix.bias && matrix.quantized()) kernels.rowwise.add(out, matrix.bias + first, count, out);
}

std::int64_t panel_rows(const Rows& in, const Matrix& matrix) {
  if (matrix.quantized()) return kPanelRows;
  const std::int64_t rows = kPanelBytes / std::int64_t{sizeof(float)} / in.cols;
  return std::max(rows / kTileRows * kTileRows, kLeastPanelRows);
}

// Panels of even height.
std::int64_t panels_of(const Rows& in, const Matrix& matrix) {
  const std::int64_t most = panel_rows(in, matrix);
  return (in.rows + most - 1) / most;
}

RowRange panel_of(const Rows& in, const Matrix& matrix, std::int64_t panel) {
  const std::int64_t panels = panels_of(in, matrix);
  if (panels == 1) return {0, panel == 0 ? in.rows : 0};
  const std::int64_t even = (in.rows + panels - 1) / panels;
  const std::int64_t height = (even + kTileRows - 1) / kTileRows * kTileRows;
  const std::int64_t first = panel * height;
  return {first, std::clamp<std::int64_t>(in.rows - first, 0, height)};
}

const Matrix& matrix_of(const LinearOutput& piece) { return *piece.matrix; }
const Matrix& matrix_of(const GatedOutput& piece) { return *piece.up; }

// Runs task(piece, rows, begin, end, worker) over cuts of the items of all pieces: panel by panel,
// the pieces one after the other; `own(piece)` is how many a panel of it has.
template <class Piece, class Own, class Task>
void run_pieces(Jobs& jobs, std::span<const Piece> pieces, double cost, std::int64_t grain,
                const Own& own, const Task& task) {
  std::int64_t panels = 0, items = 0;
  for (const Piece& piece : pieces) {
    const std::int64_t count = panels_of(*piece.in, matrix_of(piece));
    panels = std::max(panels, count);
    items += count * own(piece);
  }
  if (items == 0) return;
  jobs.run(
      items, cost / static_cast<double>(items),
      [&](std::int64_t begin, std::int64_t end, int worker) {
        std::int64_t base = 0;  // items before this panel of this piece
        for (std::int64_t panel = 0; panel < panels && base < end; ++panel) {
          for (const Piece& piece : pieces) {
            if (panel >= panels_of(*piece.in, matrix_of(piece))) continue;
            const std::int64_t from = std::max(begin - base, std::int64_t{0});
            const std::int64_t to = std::min(end - base, own(piece));
            const RowRange rows = panel_of(*piece.in, matrix_of(piece), panel);
            if (from < to && rows.count > 0) task(piece, rows, from, to, worker);
            base += own(piece);
          }
        }
      },
      grain);
}

// Columns of a gated product that are made and quantized together at least.
std::int64_t gated_unit(const GatedOutput& piece) {
  return piece.out.q1024.q ? kBlockQ8Wide : piece.out.q256.q ? kBlockQ4 : kActGroup;
}

void check_gated(const GatedOutput& piece) {
  check_input("gated_linear", *piece.in, *piece.up);
  if (piece.gate) check_input("gated_linear", *piece.in, *piece.gate);
  if ((!piece.gate || piece.gate->packed.rows == piece.up->packed.rows) &&
      piece.out.cols == piece.up->packed.rows && piece.out.rows == piece.in->rows) {
    return;
  }
  throw InvalidRequest("[gated_linear] up " + shape_of(*piece.up) + ", gate " +
                       (piece.gate ? shape_of(*piece.gate) : "none") + ", out " +
                       std::to_string(piece.out.rows) + " x " + std::to_string(piece.out.cols) +
                       " for " + std::to_string(piece.in->rows) + " rows");
}

// up = (g * (u + 1)) * sigmoid(alpha * g) of the limited gate and up; gate is overwritten.
void limited_swiglu(const KernelTable& kernels, const Gating& gating, std::int64_t n, float* gate,
                    float* up) {
  const float limit = gating.limit;
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gate[i] > limit ? limit : gate[i];
    const float u = up[i] > limit ? limit : up[i];
    up[i] = g * ((u < -limit ? -limit : u) + 1.0f);
    gate[i] = g * gating.alpha;
  }
  kernels.rowwise.sigmoid_mul(up, gate, n, up);
}

// hidden = f(gate) * up of `count` columns of a row; gate null: f(up). Overwrites both.
void combine(const KernelTable& kernels, const Gating& gating, std::int64_t count, float* gate,
             float* up, float* hidden) {
  if (!gate) {
    kernels.rowwise.activate(gating.activation, up, count, hidden);
  } else if (gating.limit > 0) {
    limited_swiglu(kernels, gating, count, gate, up);
    if (hidden != up) std::memcpy(hidden, up, static_cast<std::size_t>(count) * sizeof(float));
  } else {
    kernels.rowwise.activate_mul(gating.activation, gate, up, count, hidden);
  }
}

struct GatedColumns {
  const KernelTable& kernels;
  const Gating& gating;
  const GatedOutput piece;

  // Units [first, end) of output columns; floats: room for gate and up of all rows.
  void operator()(std::int64_t first_unit, std::int64_t end_unit, float* floats,
                  void* scratch) const {
    const std::int64_t rows = piece.in->rows, unit = gated_unit(piece);
    const std::int64_t first = first_unit * unit;
    const std::int64_t count = std::min(end_unit * unit, piece.out.cols) - first;
    const std::int64_t ld = (end_unit - first_unit) * unit;
    const std::int64_t begin = first / kRowBlock;
    const std::int64_t end = (first + count + kRowBlock - 1) / kRowBlock;
    float* ups = floats + rows * ld;
    if (piece.gate) multiply(kernels, *piece.gate, *piece.in, begin, end, floats, ld, scratch);
    multiply(kernels, *piece.up, *piece.in, begin, end, ups, ld, scratch);
    for (std::int64_t r = 0; r < rows; ++r) {
      const Rows& out = piece.out;
      float* hidden = out.x        ? out.x + r * out.ldx + first
                      : piece.gate ? floats + r * ld
                                   : ups + r * ld;
      float* gate = piece.gate ? floats + r * ld : nullptr;
      if (gate) add_bias(kernels, *piece.gate, first, count, gate);
      add_bias(kernels, *piece.up, first, count, ups + r * ld);
      combine(kernels, gating, count, gate, ups + r * ld, hidden);
      out.quantize(kernels, r, first, hidden, count);
    }
  }
};

}  // namespace

std::int64_t linear_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t rows) {
  return matmul_scratch_bytes(format, cols, rows);
}

std::int64_t gated_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t rows) {
  // Also enough for any smaller number of rows: the last layer may run with fewer.
  const std::int64_t wide = kBlockQ8Wide * std::min(rows, kWideRows);
  const std::int64_t floats =
      2 * std::max(kBlockQ4 * std::max(rows, kGatedFloats / kBlockQ4), wide);
  return floats * static_cast<std::int64_t>(sizeof(float)) +
         linear_scratch_bytes(format, cols, rows);
}

void quantize_rows(Jobs& jobs, const KernelTable& kernels, const Rows& rows) {
  if (!rows.any_quantized()) return;
  jobs.run(rows.rows, static_cast<double>(rows.cols) * 0.3,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t r = begin; r < end; ++r) {
               rows.quantize(kernels, r, rows.x + r * rows.ldx);
             }
           });
}

void linear(Jobs& jobs, const KernelTable& kernels, std::span<const LinearOutput> outputs) {
  double cost = 0;
  for (const LinearOutput& output : outputs) {
    check_input("linear", *output.in, *output.matrix);
    cost += row_block_cost(*output.matrix, output.in->rows) *
            static_cast<double>(output.matrix->row_blocks());
  }
  const auto blocks = [](const LinearOutput& output) { return output.matrix->row_blocks(); };
  run_pieces(jobs, outputs, cost, kRowBlockGrain, blocks,
             [&](const LinearOutput& output, RowRange rows, std::int64_t begin, std::int64_t end,
                 int worker) {
               const std::int64_t first = begin * kRowBlock;
               const std::int64_t count =
                   std::min(end * kRowBlock, output.matrix->packed.rows) - first;
               float* out = output.out + rows.first * output.ldo + first;
               multiply(kernels, *output.matrix, output.in->slice(rows.first, rows.count), begin,
                        end, out, output.ldo, jobs.scratch(worker));
               for (std::int64_t r = 0; r < rows.count; ++r) {
                 add_bias(kernels, *output.matrix, first, count, out + r * output.ldo);
               }
             });
}

void gated_linear(Jobs& jobs, const KernelTable& kernels, const Gating& gating,
                  std::span<const GatedOutput> outputs) {
  double cost = 0;
  for (const GatedOutput& piece : outputs) {
    check_gated(piece);
    const std::int64_t own = piece.in->rows;
    const double blocks =
        row_block_cost(*piece.up, own) + (piece.gate ? row_block_cost(*piece.gate, own) : 0.0);
    cost += blocks * static_cast<double>(piece.up->row_blocks()) +
            static_cast<double>(own * piece.out.cols);
  }
  const auto units = [](const GatedOutput& piece) {
    const std::int64_t unit = gated_unit(piece);
    return (piece.out.cols + unit - 1) / unit;
  };
  static_assert(kActGroup == kRowBlockGrain * kRowBlock);
  run_pieces(jobs, outputs, cost, 1, units,
             [&](const GatedOutput& piece, RowRange range, std::int64_t begin, std::int64_t end,
                 int worker) {
               const std::int64_t unit = gated_unit(piece), rows = range.count;
               const std::int64_t height = unit == kBlockQ8Wide ? kWideRows : rows;
               const std::int64_t at_once =
                   std::max({std::int64_t{1}, kBlockQ4 / unit, kGatedFloats / (unit * rows)});
               auto* floats = reinterpret_cast<float*>(jobs.scratch(worker));
               for (std::int64_t at = begin; at < end; at += at_once) {
                 const std::int64_t to = std::min(at + at_once, end);
                 for (std::int64_t r = 0; r < rows; r += height) {
                   const std::int64_t count = std::min(height, rows - r);
                   const Rows in = piece.in->slice(range.first + r, count);
                   const Rows out = piece.out.slice(range.first + r, count);
                   const GatedColumns columns{kernels, gating, {&in, piece.gate, piece.up, out}};
                   // The room is a multiple of 64 floats: what follows stays aligned.
                   columns(at, to, floats, floats + 2 * count * (to - at) * unit);
                 }
               }
             });
}

void gate_rows(Jobs& jobs, const KernelTable& kernels, const Gating& gating, float* gate, float* up,
               std::int64_t ld, const Rows& out) {
  jobs.run(out.rows, static_cast<double>(out.cols), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* hidden = out.x ? out.x + r * out.ldx : up + r * ld;
      combine(kernels, gating, out.cols, gate ? gate + r * ld : nullptr, up + r * ld, hidden);
      out.quantize(kernels, r, hidden);
    }
  });
}

}  // namespace musespark

#include "ops/norm.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

void check_rows(const char* op, std::int64_t rows, std::int64_t cols, const Rows& out) {
  if (out.rows == rows && out.cols == cols && out.x) return;
  throw InvalidRequest(std::string("[") + op + "] " + std::to_string(rows) + " rows of " +
                       std::to_string(cols) + " into " + std::to_string(out.rows) + " of " +
                       std::to_string(out.cols) + (out.x ? "" : " without floats"));
}

// out[row] = norm(x), and its quantized form where it is wanted.
void write_row(const KernelTable& kernels, const Norm& norm, const float* x, std::int64_t row,
               const Rows& out) {
  float* to = out.x + row * out.ldx;
  norm_row(kernels, norm, x, out.cols, to);
  out.quantize(kernels, row, to);
}

}  // namespace

void norm_row(const KernelTable& kernels, const Norm& norm, const float* x, std::int64_t n,
              float* out) {
  switch (norm.kind) {
    case Norm::Kind::none:
      if (out != x) std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(float));
      return;
    case Norm::Kind::rms:
      kernels.rowwise.rms_norm(x, norm.weight, norm.eps, n, out);
      return;
    case Norm::Kind::rms_input_scaled:
      for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] * norm.weight[i];
      kernels.rowwise.rms_norm(out, nullptr, norm.eps, n, out);
      return;
    case Norm::Kind::layer:
      kernels.rowwise.layer_norm(x, norm.weight, norm.bias, norm.eps, n, out);
      return;
  }
}

void embed(Jobs& jobs, const KernelTable& kernels, const PackedMatrix& table,
           std::span<const std::int32_t> tokens, std::span<const float* const> given, float scale,
           const Norm& embed_norm, const Residual& residual, const Norm& next, const Rows& out) {
  check_rows("embed", residual.rows, residual.cols, out);
  if (static_cast<std::int64_t>(tokens.size()) != residual.rows || table.cols != residual.cols) {
    throw InvalidRequest("[embed] " + std::to_string(tokens.size()) + " tokens of a table of " +
                         std::to_string(table.cols) + " columns into " +
                         std::to_string(residual.rows) + " rows of " +
                         std::to_string(residual.cols));
  }
  const double cost = static_cast<double>(residual.cols) * 5.0;
  jobs.run(residual.rows, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* x = residual.x + row * residual.ldx;
      const auto at = static_cast<std::size_t>(row);
      if (!given.empty() && given[at] != nullptr) {
        std::memcpy(x, given[at], static_cast<std::size_t>(residual.cols) * sizeof(float));
      } else {
        decode_row(table, tokens[at], x);
        if (scale != 1.0f) kernels.rowwise.scale(x, scale, residual.cols, x);
        norm_row(kernels, embed_norm, x, residual.cols, x);
      }
      write_row(kernels, next, x, row, out);
    }
  });
}

void add_rows(Jobs& jobs, const KernelTable& kernels, std::span<const float* const> more,
              const Residual& residual) {
  const double cost = static_cast<double>(residual.cols) * 0.2;
  jobs.run(residual.rows, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* add = more[static_cast<std::size_t>(row)];
      float* x = residual.x + row * residual.ldx;
      if (add != nullptr) kernels.rowwise.add(x, add, residual.cols, x);
    }
  });
}

void embed_text(Jobs& jobs, const KernelTable& kernels, const PackedMatrix& table,
                const PackedMatrix* types, const PackedMatrix* positions,
                std::span<const std::int32_t> tokens, float* x, std::int64_t ldx) {
  const std::int64_t n = table.cols;
  const auto add = [&](const PackedMatrix* from, std::int64_t index, float* scratch, float* row) {
    if (!from) return;
    decode_row(*from, index, scratch);
    kernels.rowwise.add(row, scratch, n, row);
  };
  jobs.run(static_cast<std::int64_t>(tokens.size()), static_cast<double>(n) * 10.0,
           [&](std::int64_t begin, std::int64_t end, int) {
             AlignedBuffer scratch(static_cast<std::size_t>(n) * sizeof(float));
             for (std::int64_t i = begin; i < end; ++i) {
               float* row = x + i * ldx;
               decode_row(table, tokens[static_cast<std::size_t>(i)], row);
               add(types, 0, scratch.as<float>(), row);
               add(positions, i, scratch.as<float>(), row);
             }
           });
}

void add_norm(Jobs& jobs, const KernelTable& kernels, const Residual& residual, float* delta,
              const Norm& post, const Join& join, const Norm& next, const Rows& out) {
  check_rows("add_norm", residual.rows, residual.cols, out);
  const double cost = static_cast<double>(residual.cols) * 0.5;
  jobs.run(residual.rows, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* x = residual.x + row * residual.ldx;
      float* add = delta + row * residual.ldx;
      norm_row(kernels, post, add, residual.cols, add);
      if (join.alpha) {
        for (std::int64_t i = 0; i < residual.cols; ++i) {
          x[i] = join.alpha[i] * x[i] + join.beta[i] * add[i];
        }
      } else {
        if (join.scale != 1.0f) kernels.rowwise.scale(add, join.scale, residual.cols, add);
        kernels.rowwise.add(x, add, residual.cols, x);
      }
      write_row(kernels, next, x, row, out);
    }
  });
}

void norm_rows(Jobs& jobs, const KernelTable& kernels, const float* x, std::int64_t ldx,
               const Norm& norm, const Rows& out) {
  check_rows("norm_rows", out.rows, out.cols, out);
  jobs.run(out.rows, static_cast<double>(out.cols) * 0.3,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t row = begin; row < end; ++row) {
               write_row(kernels, norm, x + row * ldx, row, out);
             }
           });
}

void add_vector(Jobs& jobs, const KernelTable& kernels, const float* vector,
                const Residual& residual, const Norm& next, const Rows& out) {
  check_rows("add_vector", residual.rows, residual.cols, out);
  jobs.run(residual.rows, static_cast<double>(residual.cols) * 0.4,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t row = begin; row < end; ++row) {
               float* x = residual.x + row * residual.ldx;
               kernels.rowwise.add(x, vector, residual.cols, x);
               write_row(kernels, next, x, row, out);
             }
           });
}

void gather_rows(const Residual& residual, std::span<const std::int64_t> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto to = static_cast<std::int64_t>(i);
    if (rows[i] == to) continue;
    std::memcpy(residual.x + to * residual.ldx, residual.x + rows[i] * residual.ldx,
                static_cast<std::size_t>(residual.cols) * sizeof(float));
  }
}

void cap_logits(Jobs& jobs, const KernelTable& kernels, float scale, float cap, std::int64_t count,
                float* logits) {
  if (scale == 1.0f && cap == 0.0f) return;
  constexpr std::int64_t kPiece = 1024;
  jobs.run((count + kPiece - 1) / kPiece, kPiece * (cap == 0.0f ? 0.1 : 0.6),
           [&](std::int64_t begin, std::int64_t end, int) {
             const std::int64_t first = begin * kPiece;
             const std::int64_t last = std::min(end * kPiece, count);
             kernels.rowwise.softcap(logits + first, scale, cap, last - first, logits + first);
           });
}

}  // namespace musespark

// Row operations of the residual stream: embedding, norms, residual sums, logits.
#pragma once

#include <cstdint>
#include <span>

#include "ops/linear.h"

namespace musespark {

// How a row is normed, weights ready for use (1 already added to zero-centred ones).
struct Norm {
  enum class Kind : std::uint8_t { none, rms, rms_input_scaled, layer };
  Kind kind = Kind::none;
  float eps = 0;
  const float* weight = nullptr;  // rms: null for scaleless
  const float* bias = nullptr;    // layer only, may be null
};

// One row; out may be x.
void norm_row(const KernelTable& kernels, const Norm& norm, const float* x, std::int64_t n,
              float* out);

// Rows of the residual stream: x [rows][ldx].
struct Residual {
  float* x;
  std::int64_t ldx;
  std::int64_t rows;
  std::int64_t cols;
};

// Copies (and decodes) row tokens[r] of the packed matrix to x[r], scales and norms it, then writes
// norm(x[r]) to out as add_norm does. given: by row, what x[r] is instead, neither scaled nor
// normed, or null; empty: none is.
void embed(Jobs& jobs, const KernelTable& kernels, const PackedMatrix& table,
           std::span<const std::int32_t> tokens, std::span<const float* const> given, float scale,
           const Norm& embed_norm, const Residual& residual, const Norm& next, const Rows& out);

// x[r] += more[r] for each row that has one; by row, or null.
void add_rows(Jobs& jobs, const KernelTable& kernels, std::span<const float* const> more,
              const Residual& residual);

// x[r] = (table[tokens[r]] + types[0]) + positions[r]; what is null is left out. x: [tokens][ldx].
void embed_text(Jobs& jobs, const KernelTable& kernels, const PackedMatrix& table,
                const PackedMatrix* types, const PackedMatrix* positions,
                std::span<const std::int32_t> tokens, float* x, std::int64_t ldx);

// How a row joins the residual stream: x <- x + scale * y; or, with alpha and beta [cols],
// x <- alpha * x + beta * y.
struct Join {
  float scale = 1.0f;
  const float* alpha = nullptr;
  const float* beta = nullptr;
};

// x[r] <- join(x[r], post(delta[r])), delta [rows][ldx of the residual], overwritten; then out[r] =
// next(x[r]), floats (always: out.x is the buffer it is made in) and quantized where out.q is
// there.
void add_norm(Jobs& jobs, const KernelTable& kernels, const Residual& residual, float* delta,
              const Norm& post, const Join& join, const Norm& next, const Rows& out);

// out[r] = norm(x[r]), x [out.rows][ldx]; floats and quantized as add_norm.
void norm_rows(Jobs& jobs, const KernelTable& kernels, const float* x, std::int64_t ldx,
               const Norm& norm, const Rows& out);

// x[r] += vector [cols], one float addition each; then out[r] = next(x[r]) as add_norm writes it.
void add_vector(Jobs& jobs, const KernelTable& kernels, const float* vector,
                const Residual& residual, const Norm& next, const Rows& out);

// Moves the chosen rows (ascending) to the front: x[i] = x[rows[i]].
void gather_rows(const Residual& residual, std::span<const std::int64_t> rows);

// logits <- cap * tanh(logits * scale / cap), cap = 0: logits * scale; in place.
void cap_logits(Jobs& jobs, const KernelTable& kernels, float scale, float cap, std::int64_t count,
                float* logits);

}  // namespace musespark

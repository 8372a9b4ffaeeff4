// Low-rank additions to products (LoRA): rows that have an adapter get more than the matrix gives.
//
//   out <- out + (x . A^T) . B^T
//
// out is the finished product, its bias added. x . A^T and the product with B^T are f32, each one
// fma chain per output as any float matmul; their result is added with one float addition. A row's
// bits depend on the row alone: neither on the rows beside it nor on their adapters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "ops/linear.h"

namespace musespark {

// A [rank, inputs] and B [outputs, rank], f32 or bf16; B times the adapter's scale.
struct LowRank {
  Matrix a, b;
};

// One addition: rows of floats in, added to out [in.rows][ldo].
struct LowRankOutput {
  const LowRank* matrices;
  Rows in;
  float* out;
  std::int64_t ldo;
};

// Runs additions; keeps its buffer between calls, grown as needed.
class LowRankRunner {
 public:
  // Two jobs for all of them together. Throws InvalidRequest where shapes or forms do not match.
  void run(Jobs& jobs, const KernelTable& kernels, std::span<const LowRankOutput> outputs);

 private:
  void project(Jobs& jobs, const KernelTable& kernels, std::span<const LowRankOutput> outputs);

  AlignedBuffer buffer_;
  std::vector<Rows> slices_;          // of the inputs
  std::vector<LinearOutput> down_;    // x . A^T, a slice of rows each
  std::vector<LinearOutput> pieces_;  // (x . A^T) . B^T, a slice of rows each
  std::vector<Rows> inner_;           // x . A^T by slice
};

}  // namespace musespark

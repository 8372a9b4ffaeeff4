// Sums over the inputs x of a model's matrices, taken while it runs: of x[k]^2, or of the products
// x[i] * x[j]. They say which columns of a matrix matter (formats/pack.h: PackGuide).
//
// Rows come in the order of the calls; a sum's bits depend neither on threads nor on the
// instruction set (products are made by the f32 matmul kernel).
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "base/aligned.h"
#include "kernels/dispatch.h"
#include "ops/jobs.h"
#include "ops/rows_buffer.h"
#include "ops/tap.h"

namespace musespark {

struct InputKey {
  InputOf what;
  std::int64_t layer;
  std::int64_t expert;
  auto operator<=>(const InputKey&) const = default;
};

struct InputSum {
  std::int64_t cols = 0;
  std::int64_t rows = 0;        // seen so far
  std::vector<double> squares;  // [cols]
  AlignedBuffer products;       // float [cols][cols], j >= i alone; empty: not asked for
};

class InputSums : public InputTap {
 public:
  explicit InputSums(ThreadPool& pool) : jobs_(pool), kernels_(kernels()) {}

  // From now on sums the inputs `key`, of `cols` columns. Throws MemoryBudgetExceeded.
  void want(const InputKey& key, std::int64_t cols, bool products);
  // Throws InvalidRequest for an input of other columns than were said.
  void see(InputOf what, std::int64_t layer, std::int64_t expert, const Rows& rows) override;
  // Hands a sum out and forgets it; throws InvalidRequest for one that nobody wanted.
  InputSum take(const InputKey& key);
  // The highest layer wanted (the number of layers for the head), -1: nothing is wanted.
  std::int64_t last_layer(std::int64_t layers) const;

 private:
  Rows as_floats(const Rows& rows);
  void add_squares(const Rows& rows, InputSum* sum);
  void add_products(const Rows& rows, InputSum* sum);

  Jobs jobs_;
  const KernelTable& kernels_;
  std::map<InputKey, InputSum> sums_;
  AlignedBuffer floats_, turned_, packed_, strip_;  // of the rows at hand
};

}  // namespace musespark

// What formats of keys and values do to attention, measured while a model runs over text with f32
// pages: the same queries on the exact keys and values, and on what each format makes of them.
//
// The first positions of a page, beginning with the third: for these nearly all of what they see is
// sealed, the tokens just before them too. Pages are as in a sequence: the first at 8 bits, the
// query's own exact. For a query head, over its queries:
//
//     divergence   sum of KL(exact weights || the format's), in nats, sinks among them
//     error        sum of |output - exact output|^2, with the format's weights and values
//     exact        sum of |exact output|^2
//
// Queries in 8 bits are counted with the keys; the rounding of the weights is not. In double, in
// one order: the bits depend neither on threads nor on the instruction set.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "formats/kv_page.h"
#include "kernels/dispatch.h"
#include "ops/jobs.h"
#include "ops/tap.h"

namespace musespark {

inline constexpr std::array<KvFormat, 3> kMeasuredFormats = {KvFormat::kv8, KvFormat::kv8v4,
                                                             KvFormat::kv4};

struct KvError {
  std::int64_t queries = 0;
  double exact = 0;
  std::array<double, kMeasuredFormats.size()> divergence{}, error{};
};

// Mean over rows of KL(softmax(exact) || softmax(other)), in nats; logits [rows][cols].
double mean_divergence(const float* exact, const float* other, std::int64_t rows,
                       std::int64_t cols);

class KvErrors : public InputTap {
 public:
  KvErrors(ThreadPool& pool, std::int64_t layers)
      : jobs_(pool), kernels_(kernels()), heads_(static_cast<std::size_t>(layers)) {}

  void see(InputOf, std::int64_t, std::int64_t, const Rows&) override {}
  // Pages are f32. What begins at position 0 is measured.
  void see_heads(std::int64_t layer, const HeadsSeen& heads) override;

  // By layer and query head, of all sequences so far; a layer not seen has none.
  const std::vector<std::vector<KvError>>& heads() const { return heads_; }

 private:
  Jobs jobs_;
  const KernelTable& kernels_;
  std::vector<std::vector<KvError>> heads_;
};

}  // namespace musespark

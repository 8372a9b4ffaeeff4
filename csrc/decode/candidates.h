// The largest entries of a row in one strict order (value descending, then id ascending) without
// sorting the row: a prefix that grows as far as it is asked for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

class Candidates {
 public:
  // `values` is [n], without NaN. `order` is memory to reuse; the object owns its content.
  Candidates(const float* values, std::int64_t n, std::vector<std::int32_t>& order)
      : values_(values), n_(n), order_(order) {
    order_.clear();
  }

  // At least the `count` largest (all, where there are fewer), sorted. May return more. Few cost
  // little more than a look at each value.
  std::span<const std::int32_t> largest(std::int64_t count);

 private:
  bool before(std::int32_t a, std::int32_t b) const {
    return values_[a] != values_[b] ? values_[a] > values_[b] : a < b;
  }
  void select_by_heap(std::int64_t count);
  void extend(std::int64_t count);

  const float* values_;
  std::int64_t n_;
  std::vector<std::int32_t>& order_;
  std::int64_t sorted_ = 0;
};

}  // namespace musespark

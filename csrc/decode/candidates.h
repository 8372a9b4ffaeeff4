// The largest entries of a row in one strict order (value descending, then id ascending) without
// sorting the row: a prefix that grows as far as it is asked for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

// Memory to reuse.
struct CandidatesMemory {
  std::vector<std::int32_t> order;         // ids, best first as far as sorted
  std::vector<std::uint64_t> keys, other;  // of those that are sorted
};

class Candidates {
 public:
  // `values` is [n], without NaN. The object owns the content of `memory`.
  Candidates(const float* values, std::int64_t n, CandidatesMemory& memory)
      : values_(values), n_(n), memory_(memory), order_(memory.order) {
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
  void select_by_radix(std::int64_t count);
  void sort_keys();

  const float* values_;
  std::int64_t n_;
  CandidatesMemory& memory_;
  std::vector<std::int32_t>& order_;
  std::int64_t sorted_ = 0;
};

}  // namespace musespark

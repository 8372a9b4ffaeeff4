// Which rows of a cache of keys stay when some must go: importance minus redundancy, after R-KV
// (arXiv 2505.24133), for one KV head of one layer.
//
//     importance_j = softmax over j of (the most that a query head of the group scores key j), mean
//                    over the queries, then the largest of the 7 keys around j
//     redundancy_j = softmax over j of (mean over i of the cosine of keys i and j), where key i
//                    counts neither against itself nor against the latest key that is closer to it
//                    than 0.5: of several that are alike the latest stays
//     kept:          the last `queries` rows, and those of the largest
//                    0.1 importance - 0.9 redundancy, the earlier of equals
//
// Softmaxes are over the rows that may go; scores are taken before a layer's soft cap. A key that
// is not finite is like no other. Float32 sums over channels, then over rows, ascending; exp in
// double: the choice is the same on every machine.
#pragma once

#include <cstdint>
#include <vector>

namespace musespark {

struct ChooseRowsArgs {
  std::int64_t rows, head_dim;  // head_dim: a multiple of 16
  const float* keys;            // [rows][head_dim]
  std::int64_t queries, group;  // queries < keep < rows
  const float* query;           // [queries][group][head_dim], scaled as attention takes them
  std::int64_t keep;
};

// Throws InvalidRequest, prefixed [choose_rows], unless the numbers fit. Indices ascending.
std::vector<std::int32_t> choose_rows(const ChooseRowsArgs& args);

}  // namespace musespark

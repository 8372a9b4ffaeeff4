// Attention over whole texts for the neon level. The vocabulary comes first: the rest is written in
// it.
#include "kernels/detail/vector_neon.inl"

#include "kernels/detail/dot_neon.inl"

#include "kernels/attention/whole_dot.inl"
#include "kernels/entries.h"

namespace musespark {

void whole_pack_neon(const float* k, const float* v, std::int64_t ld, const WholeHead* to) {
  whole_pack_keys(k, ld, value_dim(*to), kKeyFlip, *to);
  whole_pack_values(v, ld, *to);
}

void whole_attend_neon(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                       float factor, float* out, std::int64_t ldo, void* scratch) {
  whole_rows(*head, q, ldq, rows, factor, out, ldo, scratch);
}

}  // namespace musespark

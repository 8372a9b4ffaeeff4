// Attention over whole texts for the amx level. The vocabulary comes first: the rest is written in
// it.
#include "kernels/detail/vector_avx512.inl"

#include "kernels/detail/dot_avx512vnni.inl"

#include "kernels/attention/whole_amx.inl"
#include "kernels/entries.h"

namespace musespark {

void whole_pack_amx(const float* k, const float* v, std::int64_t ld, const WholeHead* to) {
  whole_pack_keys(k, ld, rounded_up(to->head_dim, kDepth), 0, *to);
  whole_pack_values(v, ld, *to);
}

void whole_attend_amx(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                      float factor, float* out, std::int64_t ldo, void* scratch) {
  WholeRows(*head, factor, out, ldo, scratch).run(q, ldq, rows);
}

}  // namespace musespark

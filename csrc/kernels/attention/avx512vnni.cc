// Attention kernels for the avx512vnni level. The vocabulary comes first: the rest is written in
// it.
#include "kernels/detail/vector_avx512.inl"

#include "kernels/detail/dot_avx512vnni.inl"

#include "kernels/attention/products_dot.inl"

#include "kernels/attention/attend.inl"
#include "kernels/attention/pages.inl"
#include "kernels/attention/seal.inl"
#include "kernels/entries.h"

namespace musespark {

void attend_chunk_avx512vnni(const AttendChunkArgs* args) { attend_rows(args); }

void attention_merge_avx512vnni(std::int64_t rows, std::int64_t d, AttentionPartial* state,
                                float* o, const AttentionPartial* other, const float* other_o) {
  merge_rows(rows, d, state, o, other, other_o);
}

void attention_finish_avx512vnni(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                                 const float* o, const float* sink, float* out, std::int64_t ldo,
                                 std::int64_t head_dim_out) {
  finish_rows(rows, d, state, o, sink, out, ldo, head_dim_out);
}

void write_token_avx512vnni(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                            const float* v, std::uint8_t* open) {
  write_slot(format, d, slot, k, v, open);
}

void seal_page_avx512vnni(KvFormat format, std::int64_t d, const std::uint8_t* open,
                          std::uint8_t* sealed) {
  seal_rows(format, d, open, sealed);
}

}  // namespace musespark

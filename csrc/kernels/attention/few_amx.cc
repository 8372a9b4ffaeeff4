// attend_chunk for the amx level where there are few rows: the avx512vnni level's, with VBMI.
#include "kernels/detail/vector_avx512.inl"

#include "kernels/detail/dot_avx512vnni.inl"

#include "kernels/attention/products_dot.inl"

#include "kernels/attention/attend.inl"
#include "kernels/entries.h"

namespace musespark {

void attend_chunk_few_amx(const AttendChunkArgs* args) { attend_rows(args); }

}  // namespace musespark

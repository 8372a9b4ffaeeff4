// attend_chunk for the i8mm level; the other entries are those of neon.cc. The vocabulary comes
// first: the rest is written in it.
#include "kernels/detail/vector_neon.inl"

#include "kernels/detail/dot_i8mm.inl"

#include "kernels/attention/products_dot.inl"

#include "kernels/attention/attend.inl"
#include "kernels/entries.h"

namespace musespark {

void attend_chunk_i8mm(const AttendChunkArgs* args) { attend_rows(args); }

}  // namespace musespark

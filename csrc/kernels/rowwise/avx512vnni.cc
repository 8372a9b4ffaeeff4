// Rowwise kernels for the avx512vnni level (the text is rowwise.inl).
#include "kernels/detail/vector_avx512.inl"
// The vocabulary comes first: the next two are written in it.
#include "kernels/detail/math.inl"
#include "kernels/rowwise/rowwise.inl"
// Last: declares what this file defines.
#include "kernels/entries.h"

namespace musespark {

const RowwiseKernels rowwise_avx512vnni = kRowwise;

}  // namespace musespark

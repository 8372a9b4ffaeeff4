// Rowwise kernels for the avx2 level (the text is rowwise.inl).
#include "kernels/detail/vector_avx2.inl"
// The vocabulary comes first: the next two are written in it.
#include "kernels/detail/math.inl"
#include "kernels/rowwise/rowwise.inl"
// Last: declares what this file defines.
#include "kernels/entries.h"

namespace musespark {

const RowwiseKernels rowwise_avx2 = kRowwise;

}  // namespace musespark

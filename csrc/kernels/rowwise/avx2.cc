// Rowwise kernels for the avx2 level. The vocabulary comes first: the rest is written in it.
#include "kernels/detail/vector_avx2.inl"

#include "kernels/entries.h"
#include "kernels/rowwise/rowwise.inl"

namespace musespark {

const RowwiseKernels rowwise_avx2 = kRowwise;

}  // namespace musespark

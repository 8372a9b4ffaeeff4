// Rowwise kernels for the avx512vnni level. The vocabulary comes first: the rest is written in it.
#include "kernels/detail/vector_avx512.inl"

#include "kernels/entries.h"
#include "kernels/rowwise/rowwise.inl"

namespace musespark {

const RowwiseKernels rowwise_avx512vnni = kRowwise;

}  // namespace musespark

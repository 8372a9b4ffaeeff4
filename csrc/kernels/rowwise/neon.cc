// Rowwise kernels for the neon level. The vocabulary comes first: the rest is written in it.
#include "kernels/detail/vector_neon.inl"

#include "kernels/entries.h"
#include "kernels/rowwise/rowwise.inl"

namespace musespark {

const RowwiseKernels rowwise_neon = kRowwise;

}  // namespace musespark

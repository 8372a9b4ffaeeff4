// Image kernels for the avx512vnni level: those of avx2 with one instruction for a product and its
// sum.
#include <immintrin.h>

#include <cstdint>

#include "kernels/entries.h"

namespace musespark {
namespace {

inline __m256i dot_add(__m256i acc, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(acc, a, b); }

}  // namespace
}  // namespace musespark

#include "kernels/image/resample_x86.inl"

namespace musespark {

const ImageKernels image_avx512vnni = kImage;

}  // namespace musespark

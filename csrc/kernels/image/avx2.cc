// Image kernels for the avx2 level.
#include <immintrin.h>

#include <cstdint>

#include "kernels/entries.h"

namespace musespark {
namespace {

inline __m256i dot_add(__m256i acc, __m256i a, __m256i b) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}

}  // namespace
}  // namespace musespark

#include "kernels/image/resample_x86.inl"

namespace musespark {

const ImageKernels image_avx2 = kImage;

}  // namespace musespark

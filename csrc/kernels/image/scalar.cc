// The specification of the image kernels.
#include "kernels/entries.h"
#include "kernels/image/plain.inl"

namespace musespark {
namespace {

void rows(const ResampleAxis* axis, std::int64_t channels, std::int64_t, std::int64_t rows,
          const std::uint8_t* const* in, std::uint8_t* const* out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < axis->size; ++i) plain_pixel(axis, i, channels, in[r], out[r]);
  }
}

void column(const ResampleAxis* axis, std::int64_t index, std::int64_t n,
            const std::uint8_t* const* in, std::uint8_t* out) {
  plain_column(axis, index, 0, n, in, out);
}

}  // namespace

const ImageKernels image_scalar = {rows, column};

}  // namespace musespark

#include "kernels/qmatmul/qmatmul.h"

#include <algorithm>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/widened.inl"

namespace musespark {
namespace {

// An unpacked panel, the result tiles of a matrix unit and 256 columns of its activations.
constexpr std::int64_t kPanelBytes = 32 * 1024 * 2 + 512 * 256;
// Float sums between panels: 128 weight rows x up to 512 activation rows.
constexpr std::int64_t kSumRows = 512;
constexpr std::int64_t kRowBytes = 128 * 4;

// Rows of activations kept in a second form at a time: pairs of rows; on x86-64 int16 pairs of a
// pass or of a few rows, or tiles padded to 16 rows, and their scales.
std::int64_t second_form_bytes(std::int64_t kp, std::int64_t rows) {
#if defined(__aarch64__)
  return kp * std::min(rows, paired_rows(kp));
#else
  const std::int64_t of_few = (2 * kp + kp / kActGroup * 4) * 16;
  return std::max(of_few, 2 * kp * std::min(rows, widened_rows(kp)));
#endif
}

}  // namespace

std::int64_t matmul_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t m) {
  if (format == WeightFormat::f32 || format == WeightFormat::bf16) return 64;
  const std::int64_t kp = (cols + kActGroup - 1) / kActGroup * kActGroup;
  const std::int64_t rows = (std::min(m, kSumRows) + 15) / 16 * 16;
  return second_form_bytes(kp, rows) + kPanelBytes + rows * kRowBytes;
}

}  // namespace musespark

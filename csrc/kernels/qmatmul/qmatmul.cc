#include "kernels/qmatmul/qmatmul.h"

#include <algorithm>

namespace musespark {
namespace {

// Rows of activations kept in a second form at a time: int16 pairs, or tiles padded to 16 rows; on
// AArch64 pairs of rows, two bytes a column for 64 pairs.
#if defined(__aarch64__)
constexpr std::int64_t kWidenedRows = 64;
#else
constexpr std::int64_t kWidenedRows = 16;
#endif
// An unpacked panel, and the result tiles of a matrix unit.
constexpr std::int64_t kPanelBytes = 32 * 1024 * 2;
// Float sums between panels: 64 weight rows x up to 512 activation rows.
constexpr std::int64_t kSumRows = 512;
constexpr std::int64_t kRowBytes = 64 * 4;

}  // namespace

std::int64_t matmul_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t m) {
  if (format == WeightFormat::f32 || format == WeightFormat::bf16) return 64;
  const std::int64_t kp = (cols + kActGroup - 1) / kActGroup * kActGroup;
  const std::int64_t rows = (std::min(m, kSumRows) + 15) / 16 * 16;
  return 2 * kp * kWidenedRows + kPanelBytes + rows * kRowBytes;
}

}  // namespace musespark

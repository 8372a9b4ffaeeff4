#include "kernels/qmatmul/qmatmul.h"

#include <algorithm>

namespace musespark {
namespace {

// Rows of activations kept in a second form at a time: int16 pairs, or tiles padded to 16 rows.
constexpr std::int64_t kWidenedRows = 16;
// An unpacked panel of 32 weight rows and up to 1024 columns, the widest any level uses.
constexpr std::int64_t kPanelBytes = 32 * 1024 * 2;
// Float sums between panels: 32 weight rows x up to 512 activation rows.
constexpr std::int64_t kSumRows = 512;
constexpr std::int64_t kRowBytes = 32 * 4;
constexpr std::int64_t kTileBytes = 16 * 1024;   // result tiles of matrix units

}  // namespace

std::int64_t matmul_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t m) {
  if (format == WeightFormat::f32 || format == WeightFormat::bf16) return 64;
  const std::int64_t kp = (cols + kActGroup - 1) / kActGroup * kActGroup;
  const std::int64_t rows = (std::min(m, kSumRows) + 15) / 16 * 16;
  return 2 * kp * kWidenedRows + kPanelBytes + rows * kRowBytes + kTileBytes;
}

}  // namespace musespark

#include "kernels/qmatmul/qmatmul.h"

#include <algorithm>

namespace musespark {
namespace {

// Rows of activations kept in a second form at a time (int16 pairs, or AMX row padding).
constexpr std::int64_t kScratchRows = 16;
// An unpacked panel: 32 weight rows x kPanelCols int16, the widest any level uses.
constexpr std::int64_t kPanelCols = 1024;
constexpr std::int64_t kPanelBytes = 32 * kPanelCols * 2;
// AMX result tiles of one 256-column block, and alignment.
constexpr std::int64_t kTileBytes = 64 * 1024;

}  // namespace

std::int64_t matmul_scratch_bytes(WeightFormat format, std::int64_t cols, std::int64_t m) {
  if (format == WeightFormat::f32 || format == WeightFormat::bf16) return 64;
  const std::int64_t kp = (cols + kActGroup - 1) / kActGroup * kActGroup;
  return 2 * kp * std::min(m, kScratchRows) + kPanelBytes + kTileBytes;
}

}  // namespace musespark

#include "kernels/attention/whole.h"

namespace musespark {

std::int64_t whole_scratch_bytes(std::int64_t count, std::int64_t head_dim) {
  // Of 32 rows: queries of 16 bits, sums of 32; of twice 16: two planes of 16 bits. All a line
  // apart.
  const std::int64_t keys = (count + kWholePage - 1) / kWholePage * kWholePage + 64;
  const std::int64_t dim = (head_dim + 63) / 64 * 64;
  return 32 * dim * 2 + 32 * keys * 4 + 2 * 2 * 16 * keys * 2 + 16 * 1024;
}

}  // namespace musespark

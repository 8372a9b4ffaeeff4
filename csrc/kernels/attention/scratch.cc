#include "kernels/attention/attention.h"

namespace musespark {

// What attend_row_block.inl lays out for at most kAttendRowBlock rows; the scalar kernel needs none.
std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim) {
  const std::int64_t block = rows < kAttendRowBlock ? rows : kAttendRowBlock;
  const std::int64_t per_row = kMergeChunk * 4   // scores, then exp(s - m)
                               + 2 * kPageTokens * 2  // one page of P, two planes, up to 16 bits each
                               + head_dim * 2    // the quantized query, up to 16 bits each
                               + kPagesPerChunk * 4   // q . mean of each page
                               + 64;             // scales
  const std::int64_t page = kPageTokens * head_dim * 4;  // one open page as f32
  return block * per_row + page + 8 * 64;
}

}  // namespace musespark

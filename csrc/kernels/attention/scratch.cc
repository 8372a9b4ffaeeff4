#include "kernels/attention/attention.h"

namespace musespark {

// What lay_out in attend.inl takes for one block of rows; the scalar kernel needs none.
std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim) {
  const std::int64_t block = rows < kAttendRowBlock ? rows : kAttendRowBlock;
  const std::int64_t per_row = kMergeChunk * 4            // scores, then exp(s - m)
                               + head_dim * 2             // the quantized query, up to int16
                               + 16 * 4                   // q . mean of each page
                               + 2 * kPageTokens * 2;     // one page of P, two planes
  const std::int64_t shared = kPageTokens * head_dim * 4  // one open page as f32
                              + 16 * head_dim * 4         // means
                              + kPageTokens * head_dim;   // one page of 8-bit codes
  return block * per_row + shared + 7 * 64;  // each of the seven parts begins on 64 bytes
}

}  // namespace musespark

#include "kernels/attention/attention.h"

namespace musespark {

// What lay_out in attend.inl takes for one block of rows; the scalar kernel needs none.
std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim) {
  const std::int64_t block = rows < kAttendRowBlock ? rows : kAttendRowBlock;
  const std::int64_t per_row =
      kMergeChunk * 4                                     // scores, then exp(s - m)
      + head_dim * 2                                      // the quantized query, up to int16
      + 3 * 16 * 4                                        // by page: q . mean, and two of P
      + (kMergeChunk + kPageTokens) * 2;                  // P, the first page's in two planes
  const std::int64_t shared = kPageTokens * head_dim * 4  // one open page as f32
                              + 16 * head_dim * 4         // means
                              + 2 * kMergeChunk * 4       // scales of keys and values
                              + kPageTokens * head_dim    // one page of 8-bit codes
                              + 2 * 4 * 256 * 4;          // sums of AMX tiles
  return block * per_row + shared + 12 * 64;  // each of the twelve parts begins on 64 bytes
}

}  // namespace musespark

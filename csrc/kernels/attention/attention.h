// Contract of the attention kernels (formats/kv_page.h for the bytes).
//
// A call takes R query rows that share one KV head (the query heads of a group, times some
// consecutive positions) through ONE merge chunk: up to 8 pages, positions chunk*512 .. +511.
// For row r only positions lo[r] <= p <= hi[r] inside the chunk exist; the others contribute
// nothing, to the bit, whether skipped or masked, and whatever their slots hold (a stale NaN).
// A row with none leaves max = -inf, sum = 0, o = 0.
// A row reads the page that holds its own position pos[r] (and later ones) from `open`, every
// earlier page from `sealed` (or `open` in the f32 format: sealed is null).
// Fastest when rows that follow each other see nearly the same positions: order rows by position,
// then by head. Any order gives the same bits.
//
// Scores (float32, rne, d ascending from 0, one accumulator from +0):
//     f32, open:  s = fma(q[d], k[d], s)
//     sealed:     u = fma(q[d], float(mean[d]), u) over d;  dot = sum qq[d] * code[d] (exact int32;
//                 code: of 8 bits, or m * level of 4, formats/kv_page.h)
//                 s = fma(float(dot), qscale * float(kscale_j), u)
//                 where q is quantized per row: qscale = amax/127, qq = clamp(rne(q*(127/amax)))
//                 (amax < 1e-30: qscale = 0, qq = 0; not finite: qscale = NaN, qq = 0)
//     softcap c > 0:  s = c * tanh(s / c)
//   The query comes already scaled (1/sqrt(D), query factors) and, but for f32, rotated.
// Softmax in the chunk: m = max over existing positions: 16 lanes from -inf, l = s > l ? s : l (a
// NaN
//   is never taken), and the tree; p_j = exp(s_j - m);  sum: 16 lanes, lane = position mod 16,
//   ascending, then the fixed tree. A NaN score makes the sum NaN and so the row.
// Output, pages ascending, o[d] from +0:
//     f32, open:  o[d] = fma(p_j, v_j[d], o[d]), j ascending
//     sealed:     w_j = p_j * |float(vscale_j)|;  wmax = max w_j over the page's existing
//     positions,
//                 compared as integers on the bits (a NaN is the largest)
//                 page 0 (positions 0..63): steps = 65535, else 255
//                 wmax not finite: o[d] = NaN;  wmax < 1e-30: the page adds nothing
//                 else P_j = rne(w_j * (steps / wmax))   (0..steps)
//                 o[d] = fma(float(sum_j P_j * code[j][d]), wmax / steps, o[d])      (exact int32)
//
// Merge of two partials (state first, then chunk; chunks ascending; empty ones (max = -inf, sum =
// 0) are skipped, the first non-empty one is taken as it is):
//     M = m1 > m2 ? m1 : m2; a = exp(m1 - M); b = exp(m2 - M)
//     sum = fma(sum1, a, sum2 * b);   o[d] = fma(o1[d], a, o2[d] * b)
// Finish: out[d] = (o[d] * a) / s with a = 1, s = sum; when the layer has sinks, M = max(m, sink),
// a = exp(m - M), s = fma(sum, a, exp(sink - M)). A row with nothing visible gives 0.
//
// Every NaN written is 0x7fc00000 (f16: 0x7e00). D is a multiple of 16, at most 512. Float arrays
// need 4-byte alignment, slabs 64.
#pragma once

#include <cstdint>

#include "formats/kv_page.h"

namespace musespark {

static constexpr std::int64_t kAttendRowBlock = 64;  // rows a kernel keeps in scratch at once

struct AttentionPartial {  // one per query row
  float max;
  float sum;
};

struct AttendChunkArgs {
  std::int64_t head_dim;  // D, padded to 16
  std::int64_t rows;      // R
  const float* q;         // [R][ldq], first D floats of each row
  std::int64_t ldq;
  const std::int64_t* pos;  // [R] the row's own position
  const std::int64_t* lo;   // [R] first and last visible position (whole sequence)
  const std::int64_t* hi;
  std::int64_t chunk;                 // positions chunk*512 ...
  const KvFormat* formats;            // [16] of the chunk's pages and the next's: f32, or none is
  const std::uint8_t* const* open;    // [8] open slabs of the chunk's pages, null where none
  const std::uint8_t* const* sealed;  // [8] sealed slabs, null where none; null for f32
  const std::uint8_t* const* next;    // [8] sealed slabs of the chunk that is read next, or null
  float softcap;                      // 0 = none
  AttentionPartial* partial;          // [R] out
  float* o;                           // [R][D] out
  void* scratch;                      // attention_scratch_bytes(R, D), 64-byte aligned
};

using AttendChunkFn = void (*)(const AttendChunkArgs* args);
// state (partial, o) <- merge(state, other); rows x D.
using MergeFn = void (*)(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                         const AttentionPartial* other, const float* other_o);
// out[r * ldo + i], i < head_dim_out (unpadded) from (partial, o); sink: one logit per row or null.
using FinishFn = void (*)(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                          const float* o, const float* sink, float* out, std::int64_t ldo,
                          std::int64_t head_dim_out);
// Writes one token's k and v ([D] floats) at slot 0..63 of an open page.
using WriteTokenFn = void (*)(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                              const float* v, std::uint8_t* open);
// The sealed page of 64 open rows; not for f32.
using SealPageFn = void (*)(KvFormat format, std::int64_t d, const std::uint8_t* open,
                            std::uint8_t* sealed);

std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t head_dim);

}  // namespace musespark

// Contract of attention over whole texts without a cache: every query sees every key (image
// towers).
//
// whole_pack takes keys and values [n][ld], D floats each, of one head of one text to 8 bits;
// whole_attend lets query rows of that head see them. Every operation float32, rne; the same bits
// on every instruction set. A page is 64 keys; beyond the last key there are none.
//
// Packing. Softmax does not change when all keys move by the same vector, nor do its weighted sums
// but by that of the values:
//     mean_d = (k[0][d] + k[1][d] + ...) * (1 / n), ascending from +0; of the values the same
//     keys:   x = k[j][d] - mean_d; amax over a page; scale_g = amax / 127,
//             code = rne(max(-127, min(127, x * (127 / amax))))
//     values: x = v[j][d] - mean_d; amax over all keys of channel d; the same
//     amax < 1e-30: scale = 0, codes 0; amax not finite: scale = NaN, codes 0
// A query row, factor: of the scores, times log2 e:
//     amax, codes as above over its D floats; f = (amax / 127) * factor;  c_g = f * scale_g
//     any c_g not below 1e30, or NaN: the row is NaN
//     dot_j = sum of code * code (exact int32);  m = max over j of float(dot_j) * c_g
//     t_j = max(-2, min(kWholeTop, fma(float(dot_j), c_g, kWholeTop - m)))
//     P_j = rne(2^t_j)      (0..32755): r = (t + 1.5 * 2^23) - 1.5 * 2^23, f = t - r,
//                           2^f by kExp2 (Horner, fma), times 2^r
//     of each 512 pages, ascending: S += float(sum P_j);
//                           a_d += fma(float(sum (P_j >> 8) v8), 256, float(sum (P_j & 255) v8))
//     out_d = fma(a_d, scale_d * (1 / S), mean_d)
// P in 15 bits of the row's largest: what many small weights add up to is not lost, and sums over
// all keys need one scale. NaN is canonical.
//
// Bytes of `keys` and `values` are the level's own: the same table packs and attends.
#pragma once

#include <cstdint>

namespace musespark {

static constexpr std::int64_t kWholePage = 64;
static constexpr std::int64_t kWholeSumPages = 512;  // whose sums fit int32
static constexpr std::int64_t kWholeMostDim = 512;

// Keys and values of one head of one text. Everything 64-byte aligned.
struct WholeHead {
  std::int64_t count;     // n, at least one
  std::int64_t head_dim;  // D, at most kWholeMostDim
  std::uint8_t* keys;     // pages * 64 * (D rounded up to 64)
  std::uint8_t* values;   // pages * 64 * (D rounded up to 16)
  float* key_scale;       // [pages]
  float* value_scale;     // [D rounded up to 16], as value_mean
  float* value_mean;
};
static constexpr std::int64_t whole_pages(const WholeHead& head) {
  return (head.count + kWholePage - 1) / kWholePage;
}

// k and v: rows ld floats apart.
using WholePackFn = void (*)(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
// q [rows][ldq] -> out [rows][ldo], D floats each. scratch: whole_scratch_bytes, 64-byte aligned.
using WholeAttendFn = void (*)(const WholeHead* head, const float* q, std::int64_t ldq,
                               std::int64_t rows, float factor, float* out, std::int64_t ldo,
                               void* scratch);

// The same bound for every instruction set.
std::int64_t whole_scratch_bytes(std::int64_t count, std::int64_t head_dim);

}  // namespace musespark

// How kernels of every x86 level stream codes from memory to registers: how many row blocks at
// once, and which line they fetch when.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/qmatmul/layout.inl"
#include "kernels/qmatmul/qmatmul.h"

namespace musespark {
namespace {

// Row blocks read side by side where weights stream from memory, and how far ahead of use their
// codes are fetched: one line for each code vector, never several at once, or the line fill buffers
// run empty while the vectors between two bursts are worked on. Four streams, because the hardware
// prefetcher and the page walk stop at every 4 KiB page of a single one. (8192 x 2048 q4 on Emerald
// Rapids, 2 cores, 32 GB/s: one stream 23 GB/s, eight 28 to 29, four 31; in bursts of eight lines
// 27.)
constexpr int kStreams = 4;
constexpr std::int64_t kAheadBytes = 3072;

inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

// Makes `at` an array that rests in memory: the compiler keeps it in no register over a barrier.
template <class T>
[[gnu::always_inline]] inline void rest_in_memory(T& at) {
  T* p = &at;
  __asm__ volatile("" : "+r"(p) : : "memory");
}

// always_inline: a call whose only effect is a prefetch has none for the compiler, which drops it.
[[gnu::always_inline]] inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}

inline std::int32_t load_i32(const void* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// From codes of group g to those to be fetched: kAheadBytes on, or in the row blocks `to_next` on.
template <WeightFormat kFormat>
inline std::int64_t fetch_distance(std::int64_t g, std::int64_t groups, std::int64_t to_next) {
  constexpr std::int64_t kStride = code_stride(kFormat), kAhead = kAheadBytes / kStride;
  return g + kAhead < groups ? kAhead * kStride : (kAhead - groups) * kStride + to_next;
}

// From the codes of panel `i` of `count` side by side, each of `blocks` row blocks and `panel_cols`
// columns from k0 on, to those of the panel that is unpacked next.
template <WeightFormat kFormat>
inline std::int64_t panel_ahead(const MatmulArgs& a, std::int64_t blocks, std::int64_t k0,
                                std::int64_t panel_cols, std::int64_t i, std::int64_t count) {
  constexpr std::int64_t kStride = code_stride(kFormat);
  const std::int64_t to_next = blocks * a.w.row_block_bytes;
  if (i + 1 < count) return to_next;
  if (k0 + panel_cols < a.xq->cols) return panel_cols / 64 * kStride - (count - 1) * to_next;
  return to_next - k0 / 64 * kStride;
}

}  // namespace
}  // namespace musespark

// Small things the AVX-512 and AMX matmul files share.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "formats/weights.h"

namespace musespark {
namespace {

inline std::int32_t load_i32(const void* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

inline void compiler_barrier() { __asm__ volatile("" ::: "memory"); }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Row blocks read side by side where weights stream from memory, and how far ahead of use their
// codes are fetched: one line for each code vector, never several at once, or the line fill buffers
// run empty while the vectors between two bursts are worked on. Four streams, because the hardware
// prefetcher and the page walk stop at every 4 KiB page of a single one. (8192 x 2048 q4 on Emerald
// Rapids, 2 cores, 32 GB/s: one stream 23 GB/s, eight 28 to 29, four 31; in bursts of eight lines
// 27.)
constexpr int kStreams = 4;
constexpr std::int64_t kAheadBytes = 3072;

inline __m512 block_scales(const std::uint16_t* block) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
}

// Lanes of row block `index` that are rows of the matrix.
inline __mmask16 row_mask(const PackedMatrix& w, std::int64_t index) {
  const std::int64_t left = w.rows - index * kRowBlock;
  return left >= kRowBlock ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

}  // namespace
}  // namespace musespark

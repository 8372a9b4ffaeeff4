// What the attention kernels fetch while they work: into the second-level cache, spread over all
// that they do, so that memory is never idle and the few buffers of the first level stay free. The
// hardware does not prefetch from page to page.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

constexpr std::int64_t kFetchAhead = 3;  // pages of keys or values
constexpr std::int64_t kLine = 64;

// The order in which a chunk is read: keys of its pages, then values. Beginning kFetchAhead pages
// of keys into this chunk it goes on as far into the next one, whose small parts (means, scales,
// steps) come before its keys.
struct Fetch {
  const std::uint8_t* at = nullptr;  // what is fetched next, up to `end`
  const std::uint8_t* end = nullptr;
  const AttendChunkArgs* args = nullptr;
  std::int64_t first_page = 0, end_page = 0;  // of this chunk
  std::int64_t segment = kFetchAhead;
  std::int64_t quarters = 0;  // lines for each vector of codes that a product reads, times 4
  std::int64_t credit = 0;    // of quarters
  std::int64_t lines_a_row_page = 0;  // lines for the softmax of each row and page

  static constexpr std::int64_t kValues = kPagesPerChunk;  // segments before are keys
  static constexpr std::int64_t kNextTails = 2 * kPagesPerChunk;
  static constexpr std::int64_t kNextKeys = 3 * kPagesPerChunk;
  static constexpr std::int64_t kSegments = kNextKeys + kFetchAhead;

  // From a call's first rows on; of the products' time and that of the softmax the former has three
  // quarters.
  void start(const AttendChunkArgs* call, std::int64_t first, std::int64_t pages,
             std::int64_t rows) {
    args = call;
    first_page = first;
    end_page = pages;
    const std::int64_t dim = call->head_dim;
    const std::int64_t page_lines = sealed_layout(call->format, dim).bytes / kLine;
    quarters = 3 * page_lines / (2 * dim);
    lines_a_row_page = (page_lines - dim * quarters / 2 + rows - 1) / rows;
  }

  // The next segment that there is; false after the last.
  bool advance() {
    const SealedLayout layout = sealed_layout(args->format, args->head_dim);
    while (segment < kSegments) {
      const std::int64_t i = segment++;
      const std::int64_t p = i % kPagesPerChunk;
      const bool next = i >= kNextTails;
      if (next ? !args->next : p < first_page || p >= end_page) continue;
      const std::uint8_t* page = next ? args->next[p] : args->sealed[p];
      if (!page) continue;
      if (i >= kNextTails && i < kNextKeys) {
        at = page + layout.k_steps;
        end = page + layout.bytes;
      } else if (i >= kValues && i < kNextTails) {
        at = page + layout.v_codes;
        end = page + layout.k_steps;
      } else {
        at = page;
        end = page + layout.v_codes;
      }
      return true;
    }
    return false;
  }

  // While `vectors` of codes are read.
  MS_LAMBDA void beside(std::int64_t vectors) {
    credit += vectors * quarters;
    lines(credit / 4);
    credit %= 4;
  }
  void rest() {
    do {
      while (at < end) lines(1);
    } while (advance());
  }
  MS_LAMBDA void lines(std::int64_t count) {
    if (end - at < count * kLine) return more_lines(count);
    for (std::int64_t i = 0; i < count; ++i) __builtin_prefetch(at + i * kLine, 0, 2);
    at += count * kLine;
  }
  __attribute__((noinline)) void more_lines(std::int64_t count) {
    for (; count > 0; --count) {
      if (at >= end && !advance()) return;
      __builtin_prefetch(at, 0, 2);
      at += kLine;
    }
  }
};

}  // namespace
}  // namespace musespark

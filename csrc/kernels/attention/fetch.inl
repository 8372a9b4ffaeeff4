// What the attention kernels fetch while they work: into the second-level cache, spread over all
// that they do, so that memory is never idle and the few buffers of the first level stay free. The
// hardware does not prefetch from page to page.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

constexpr std::int64_t kFetchAhead = 6;  // pages of keys or values
constexpr std::int64_t kLine = 64;

// The order in which a chunk is read: keys of its pages, then values. Beginning kFetchAhead pages
// of keys into this chunk it goes on as far into the next one, whose small parts (means, scales,
// steps) come before its keys. A run that ends between two calls is fetched a little beyond its
// end: that costs less than a branch that is foretold wrongly.
struct Fetch {
  struct Run {
    const std::uint8_t* at = nullptr;
    std::int64_t lines;
  };
  const AttendChunkArgs* args = nullptr;  // null: nothing is fetched
  const std::uint8_t* at = nullptr;
  std::int64_t left = 0;      // lines of the run
  std::int64_t quarters = 0;  // lines for each vector of codes that a product reads, times 4
  std::int64_t lines_a_row_page = 0;  // lines for the softmax of each row and page
  std::int64_t unpack_lines = 0;      // lines for each unpacking of a page's keys or values
  std::int64_t prepare_lines = 0;     // lines for each step of what comes before the first page
  std::int64_t next_run = 0, runs = 0;
  Run run[3 * kPagesPerChunk + kFetchAhead];

  void add_runs(const std::uint8_t* const* pages, std::int64_t begin, std::int64_t end,
                std::int64_t from, std::int64_t to) {
    for (std::int64_t p = begin; p < end; ++p) {
      if (pages[p]) run[runs++] = {pages[p] + from, (to - from + kLine - 1) / kLine};
    }
  }

  // From a call's first rows on. A page's lines are dealt out as time is: an eighth to each
  // unpacking of 4 bits, most of the rest to the products, what is left to the softmax.
  void start(const AttendChunkArgs* call, std::int64_t first, std::int64_t end, std::int64_t rows) {
    args = call;
    const SealedLayout layout = sealed_layout(call->format, call->head_dim);
    const std::int64_t dim = call->head_dim;
    const std::int64_t page_lines = layout.bytes / kLine;
    const std::int64_t unpacked =
        (has_4bit_keys(call->format) ? 1 : 0) + (has_4bit_values(call->format) ? 1 : 0);
    unpack_lines = unpacked > 0 ? page_lines / 8 : 0;
    prepare_lines = page_lines / 8;
    quarters = ((6 - unpacked) * page_lines + 2 * dim) / (4 * dim);
    const std::int64_t rest = page_lines - dim * quarters / 2 - unpacked * unpack_lines;
    lines_a_row_page = rest > 0 ? (rest + rows - 1) / rows : 0;
    runs = 0;
    next_run = 0;
    const std::int64_t ahead = first + kFetchAhead;
    add_runs(call->sealed, ahead, end, layout.k_codes, layout.v_codes);
    add_runs(call->sealed, first, end, layout.v_codes, layout.k_steps);
    if (call->next) {
      add_runs(call->next, 0, kPagesPerChunk, layout.k_steps, layout.bytes);
      add_runs(call->next, 0, kFetchAhead, layout.k_codes, layout.v_codes);
    }
    advance();
  }

  __attribute__((noinline)) void advance() {
    if (next_run == runs) {
      quarters = lines_a_row_page = unpack_lines = prepare_lines = 0;
      left = 1;
      return;
    }
    at = run[next_run].at;
    left = run[next_run].lines;
    ++next_run;
  }

  MS_LAMBDA void lines(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) __builtin_prefetch(at + i * kLine, 0, 2);
    at += count * kLine;
    left -= count;
    if (left <= 0) advance();
  }
  // While `vectors` of codes are read.
  MS_LAMBDA void beside(std::int64_t vectors) { lines(vectors * quarters / 4); }
  void rest() {
    while (prepare_lines > 0) lines(4);
  }
};

}  // namespace
}  // namespace musespark

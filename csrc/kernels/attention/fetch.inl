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

  // From `from` to `to` of each page.
  void add_runs(const std::uint8_t* const* pages, const KvFormat* formats, std::int64_t begin,
                std::int64_t end, std::int64_t SealedLayout::* from,
                std::int64_t SealedLayout::* to) {
    for (std::int64_t p = begin; p < end; ++p) {
      if (!pages[p]) continue;
      const SealedLayout layout = sealed_layout(formats[p], args->head_dim);
      run[runs++] = {pages[p] + layout.*from, (layout.*to - layout.*from + kLine - 1) / kLine};
    }
  }

  // From a call's first rows on. A page's lines are dealt out as time is: an eighth to each
  // unpacking of 4 bits, most of the rest to the products, what is left to the softmax; by the
  // format of the last page, for that of the first may be another's.
  void start(const AttendChunkArgs* call, std::int64_t first, std::int64_t end, std::int64_t rows) {
    args = call;
    const KvFormat format = call->formats[end - 1];
    const SealedLayout layout = sealed_layout(format, call->head_dim);
    const std::int64_t dim = call->head_dim;
    const std::int64_t page_lines = layout.bytes / kLine;
    const std::int64_t unpacked =
        (has_4bit_keys(format) ? 1 : 0) + (has_4bit_values(format) ? 1 : 0);
    unpack_lines = unpacked > 0 ? page_lines / 8 : 0;
    prepare_lines = page_lines / 8;
    quarters = ((6 - unpacked) * page_lines + 2 * dim) / (4 * dim);
    const std::int64_t rest = page_lines - dim * quarters / 2 - unpacked * unpack_lines;
    lines_a_row_page = rest > 0 ? (rest + rows - 1) / rows : 0;
    runs = 0;
    next_run = 0;
    const std::int64_t ahead = first + kFetchAhead;
    using Layout = SealedLayout;
    const KvFormat* formats = call->formats;
    add_runs(call->sealed, formats, ahead, end, &Layout::k_codes, &Layout::v_codes);
    add_runs(call->sealed, formats, first, end, &Layout::v_codes, &Layout::k_steps);
    if (call->next) {
      formats += kPagesPerChunk;
      add_runs(call->next, formats, 0, kPagesPerChunk, &Layout::k_steps, &Layout::bytes);
      add_runs(call->next, formats, 0, kFetchAhead, &Layout::k_codes, &Layout::v_codes);
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

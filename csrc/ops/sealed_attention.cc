#include "ops/sealed_attention.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr KvFormat kFormat = KvFormat::kv8;
constexpr std::int64_t kMaxHeadDim = 512;  // kernels/rowwise: rotate
constexpr std::int64_t kTile = 256;  // query rows that share a chunk of keys and values in cache

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}
std::int64_t pages_of(const TextSpan& text) { return (text.count + kPageTokens - 1) / kPageTokens; }
std::int64_t tiles_of(const TextSpan& text) { return (text.count + kTile - 1) / kTile; }

// The parts of a thread's scratch; a page is sealed with the first three, a tile uses the others.
struct Scratch {
  std::uint8_t* open;
  float *key, *value;
  std::int64_t *pos, *lo, *hi;
  AttentionPartial *state, *chunk;
  float *state_o, *chunk_o, *queries;
  std::byte* kernel;
  std::int64_t bytes = 0;

  Scratch(std::byte* base, std::int64_t dp) {
    const auto carve = [&]<class T>(T*& to, std::int64_t count) {
      to = reinterpret_cast<T*>(base + bytes);
      bytes += round_up(count * std::int64_t{sizeof(T)}, 64);
    };
    carve(open, open_page_bytes(kFormat, dp));
    carve(key, dp);
    carve(value, dp);
    for (auto* rows : {&pos, &lo, &hi}) carve(*rows, kTile);
    for (auto* rows : {&state, &chunk}) carve(*rows, kTile);
    for (auto* rows : {&state_o, &chunk_o, &queries}) carve(*rows, kTile * dp);
    carve(kernel, attention_scratch_bytes(kTile, dp));
  }
};

struct SealedAttention {
  const KernelTable& kernels;
  const FullAttentionShape& shape;
  const float* qkv;
  std::int64_t ld;
  std::uint8_t* pages;
  const Rows& out;
  const std::int64_t d = shape.head_dim, dp = round_up(d, 16);
  const std::int64_t slab = sealed_page_bytes(kFormat, dp);

  // The slab of a page, `before` pages of other texts before those of its text.
  std::uint8_t* slab_of(const TextSpan& text, std::int64_t before, std::int64_t kv_head,
                        std::int64_t page) const {
    return pages + (before * shape.kv_heads + kv_head * pages_of(text) + page) * slab;
  }
  // A head in the pages' frame; `to` has dp floats.
  void turn(const float* from, float scale, float* to) const {
    fetch_head(from, ld, d);
    if (scale == 1.0f) {
      std::copy_n(from, d, to);
    } else {
      kernels.rowwise.scale(from, scale, d, to);
    }
    std::fill(to + d, to + dp, 0.0f);
    kernels.rowwise.rotate(to, dp, 0);
  }
  void seal(const TextSpan& text, std::int64_t before, std::int64_t kv_head, std::int64_t page,
            std::byte* base) const;
  void attend(const TextSpan& text, std::int64_t before, std::int64_t head, std::int64_t tile,
              std::byte* base) const;
};

void SealedAttention::seal(const TextSpan& text, std::int64_t before, std::int64_t kv_head,
                           std::int64_t page, std::byte* base) const {
  const Scratch s(base, dp);
  for (std::int64_t slot = 0; slot < kPageTokens; ++slot) {
    const std::int64_t row = page * kPageTokens + slot;
    if (row < text.count) {
      const float* k = qkv + (text.first + row) * ld + (shape.heads + kv_head) * d;
      turn(k, 1.0f, s.key);
      turn(k + shape.kv_heads * d, 1.0f, s.value);
    }
    kernels.write_token(kFormat, dp, slot, s.key, s.value, s.open);
  }
  kernels.seal_page(kFormat, dp, s.open, slab_of(text, before, kv_head, page));
}

// A tile of query rows of one head over all chunks, ascending.
void SealedAttention::attend(const TextSpan& text, std::int64_t before, std::int64_t head,
                             std::int64_t tile, std::byte* base) const {
  const Scratch s(base, dp);
  const std::int64_t first = tile * kTile, rows = std::min(kTile, text.count - first);
  const std::int64_t count = pages_of(text), kv_head = head / (shape.heads / shape.kv_heads);
  for (std::int64_t r = 0; r < rows; ++r) {
    turn(qkv + (text.first + first + r) * ld + head * d, shape.scale, s.queries + r * dp);
    s.pos[r] = count * kPageTokens;  // beyond all pages: none is open to it
    s.lo[r] = 0;
    s.hi[r] = text.count - 1;
  }
  KvFormat formats[2 * kPagesPerChunk];
  std::fill_n(formats, 2 * kPagesPerChunk, kFormat);
  const std::uint8_t *open[kPagesPerChunk] = {}, *sealed[2 * kPagesPerChunk];
  AttendChunkArgs args{};
  args.head_dim = args.ldq = dp;
  args.rows = rows;
  args.q = s.queries;
  args.pos = s.pos;
  args.lo = s.lo;
  args.hi = s.hi;
  args.formats = formats;
  args.open = open;
  args.sealed = sealed;
  args.next = sealed + kPagesPerChunk;
  args.scratch = s.kernel;
  for (std::int64_t c = 0; c * kPagesPerChunk < count; ++c) {
    for (std::int64_t i = 0; i < 2 * kPagesPerChunk; ++i) {
      const std::int64_t page = c * kPagesPerChunk + i;
      sealed[i] = page < count ? slab_of(text, before, kv_head, page) : nullptr;
    }
    args.chunk = c;
    args.partial = c == 0 ? s.state : s.chunk;
    args.o = c == 0 ? s.state_o : s.chunk_o;
    kernels.attend_chunk(&args);
    if (c > 0) kernels.attention_merge(rows, dp, s.state, s.state_o, s.chunk, s.chunk_o);
  }
  kernels.attention_finish(rows, dp, s.state, s.state_o, nullptr, s.chunk_o, dp, dp);
  for (std::int64_t r = 0; r < rows; ++r) {
    kernels.rowwise.rotate(s.chunk_o + r * dp, dp, 1);
    std::copy_n(s.chunk_o + r * dp, d, out.x + (text.first + first + r) * out.ldx + head * d);
  }
}

// Items of all texts, one after the other: own(text) of each; task(text, pages before, item).
template <class Own, class Task>
void each_item(std::span<const TextSpan> texts, std::int64_t begin, std::int64_t end,
               const Own& own, const Task& task) {
  std::int64_t base = 0, before = 0;
  for (const TextSpan& text : texts) {
    const std::int64_t count = own(text);
    const std::int64_t to = std::min(end - base, count);
    for (std::int64_t i = std::max(begin - base, std::int64_t{0}); i < to; ++i) {
      task(text, before, i);
    }
    base += count;
    before += pages_of(text);
    if (base >= end) return;
  }
}

}  // namespace

std::int64_t sealed_attention_bytes(const FullAttentionShape& shape,
                                    std::span<const TextSpan> texts) {
  std::int64_t pages = 0;
  for (const TextSpan& text : texts) pages += pages_of(text);
  return pages * shape.kv_heads * sealed_page_bytes(kFormat, round_up(shape.head_dim, 16));
}

std::int64_t sealed_attention_scratch_bytes(const FullAttentionShape& shape) {
  return Scratch(nullptr, round_up(shape.head_dim, 16)).bytes;
}

void sealed_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                      std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                      std::uint8_t* pages, const Rows& out) {
  if (out.cols != shape.heads * shape.head_dim || !out.x || shape.head_dim > kMaxHeadDim) {
    throw InvalidRequest("[sealed_attention] " + std::to_string(shape.heads) + " heads of " +
                         std::to_string(shape.head_dim) + " into rows of " +
                         std::to_string(out.cols) + (out.x ? "" : " without floats"));
  }
  const SealedAttention run{kernels, shape, qkv, ld, pages, out};
  const auto page_items = [&](const TextSpan& text) { return pages_of(text) * shape.kv_heads; };
  const auto tile_items = [&](const TextSpan& text) { return tiles_of(text) * shape.heads; };
  std::int64_t all_pages = 0, all_tiles = 0;
  double products = 0;
  for (const TextSpan& text : texts) {
    all_pages += page_items(text);
    all_tiles += tile_items(text);
    products += 2.0 * static_cast<double>(text.count * text.count * shape.head_dim * shape.heads);
  }
  const double page_cost = static_cast<double>(kPageTokens * run.dp) * 3.0;
  jobs.run(all_pages, page_cost, [&](std::int64_t begin, std::int64_t end, int worker) {
    each_item(texts, begin, end, page_items,
              [&](const TextSpan& text, std::int64_t before, std::int64_t item) {
                run.seal(text, before, item / pages_of(text), item % pages_of(text),
                         jobs.scratch(worker));
              });
  });
  const double tile_cost =
      products / 100.0 / static_cast<double>(std::max<std::int64_t>(all_tiles, 1));
  jobs.run(all_tiles, tile_cost, [&](std::int64_t begin, std::int64_t end, int worker) {
    each_item(texts, begin, end, tile_items,
              [&](const TextSpan& text, std::int64_t before, std::int64_t item) {
                run.attend(text, before, item / tiles_of(text), item % tiles_of(text),
                           jobs.scratch(worker));
              });
  });
  quantize_rows(jobs, kernels, out);
}

}  // namespace musespark

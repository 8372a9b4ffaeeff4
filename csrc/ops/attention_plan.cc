// The pieces of work of attend().
#include <algorithm>

#include "ops/attention.h"
#include "ops/attention_tiles.h"

namespace musespark {
namespace {

constexpr std::int64_t kLeastTilePositions = 8;  // where smaller tiles keep all threads busy
constexpr std::int64_t kMostSharingRows = 32;    // of a tile: more have enough of a page themselves

// Every position of the chunk is read from sealed pages by all rows of the tile.
bool reads_sealed(const AttentionSpan& span, std::int64_t first, std::int64_t chunk) {
  return (span.position + first) / kPageTokens >= (chunk + 1) * kPagesPerChunk;
}

bool same_pages(const AttentionSpan& a, const AttentionSpan& b, std::int64_t chunk) {
  const std::int64_t first = chunk * kPagesPerChunk;
  return std::equal(a.pages + first, a.pages + first + kPagesPerChunk, b.pages + first,
                    [](const KvPageView& x, const KvPageView& y) { return x.sealed == y.sealed; });
}

}  // namespace

void AttentionPlan::make(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                         int threads) {
  tiles_.clear();
  pieces_.clear();
  members_.clear();
  parts_.clear();
  partial_rows_ = 0;
  make_tiles(shape, spans, threads);
  if (!shape.floats && spans.size() > 1) share_prefixes(shape, spans);
  add_pieces(shape, threads);
}

void AttentionPlan::make_tiles(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                               int threads) {
  std::int64_t rows = 0;
  for (const AttentionSpan& span : spans) rows += span.rows;
  std::int64_t step = tile_positions(shape);
  while (step > kLeastTilePositions && rows / step * shape.kv_heads < 4 * threads) step /= 2;
  for (std::size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    for (std::int64_t at = 0; at < span.rows;) {
      const std::int64_t position = span.position + at;
      const std::int64_t page_end = (position / kPageTokens + 1) * kPageTokens;
      const std::int64_t count = std::min({step, span.rows - at, page_end - position});
      const std::int64_t lo =
          shape.window == 0 ? 0 : std::max<std::int64_t>(0, position - shape.window + 1);
      std::int64_t last = position + count - 1;
      for (std::int64_t r = at; r < at + count; ++r) last = std::max(last, span.last_seen(r));
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        tiles_.push_back(
            {static_cast<std::int64_t>(s), h, at, count, lo / kMergeChunk, last / kMergeChunk + 1});
      }
      at += count;
    }
  }
}

// Chunk by chunk, ascending: those who share a chunk are sought among those who shared the one
// before, for prefixes are shared from their beginning.
void AttentionPlan::share_prefixes(const AttentionShape& shape,
                                   std::span<const AttentionSpan> spans) {
  candidates_.clear();
  groups_.clear();
  const auto tiles = static_cast<std::int64_t>(tiles_.size());
  for (std::int64_t t = 0; t < tiles; t += shape.kv_heads) {
    if (tiles_[static_cast<std::size_t>(t)].count * shape.group() <= kMostSharingRows) {
      candidates_.push_back(t);
    }
  }
  std::stable_sort(candidates_.begin(), candidates_.end(), [&](std::int64_t a, std::int64_t b) {
    return tiles_[static_cast<std::size_t>(a)].chunk_begin <
           tiles_[static_cast<std::size_t>(b)].chunk_begin;
  });
  const auto all = static_cast<std::int64_t>(candidates_.size());
  const auto begins = [&](std::int64_t i) {
    return tiles_[static_cast<std::size_t>(candidates_[static_cast<std::size_t>(i)])].chunk_begin;
  };
  for (std::int64_t begin = 0; begin < all;) {
    std::int64_t end = begin;
    while (end < all && begins(end) == begins(begin)) ++end;
    groups_.assign(1, {begin, end});
    for (std::int64_t chunk = begins(begin); !groups_.empty(); ++chunk) {
      split_groups(spans, chunk);
      for (const Group& group : groups_) share_chunk(shape, group, chunk);
    }
    begin = end;
  }
}

// Of each group those who read the same sealed pages of the chunk; who reads them alone leaves.
void AttentionPlan::split_groups(std::span<const AttentionSpan> spans, std::int64_t chunk) {
  std::swap(groups_, before_);
  groups_.clear();
  const auto tile_at = [&](std::int64_t candidate) -> const Tile& {
    return tiles_[static_cast<std::size_t>(candidate)];
  };
  const auto span_of = [&](std::int64_t candidate) -> const AttentionSpan& {
    return spans[static_cast<std::size_t>(tile_at(candidate).span)];
  };
  for (const Group& group : before_) {
    const auto all = candidates_.begin();
    auto begin = all + group.begin;
    const auto end = std::stable_partition(begin, all + group.end, [&](std::int64_t t) {
      return reads_sealed(span_of(t), tile_at(t).first, chunk);
    });
    const auto page = [&](std::int64_t t) {
      return span_of(t).pages[(chunk + 1) * kPagesPerChunk - 1].sealed;
    };
    std::stable_sort(begin, end, [&](std::int64_t a, std::int64_t b) {
      return std::less<>()(page(a), page(b));
    });
    while (begin != end) {
      const AttentionSpan& first = span_of(*begin);
      const auto other = std::find_if_not(
          begin, end, [&](std::int64_t t) { return same_pages(first, span_of(t), chunk); });
      if (other - begin > 1) groups_.push_back({begin - all, other - all});
      begin = other;
    }
  }
}

// A piece for each KV head and for as many tiles as a kernel call takes.
void AttentionPlan::share_chunk(const AttentionShape& shape, const Group& group,
                                std::int64_t chunk) {
  for (std::int64_t begin = group.begin; begin < group.end;) {
    std::int64_t rows = 0;
    std::int64_t end = begin;
    const auto rows_at = [&](std::int64_t i) {
      const std::int64_t t = candidates_[static_cast<std::size_t>(i)];
      return tiles_[static_cast<std::size_t>(t)].count * shape.group();
    };
    while (end < group.end && rows + rows_at(end) <= kTileRows) rows += rows_at(end++);
    for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
      pieces_.push_back({static_cast<std::int64_t>(members_.size()), end - begin, chunk, chunk + 1,
                         partial_rows_});
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t t = candidates_[static_cast<std::size_t>(i)] + h;
        Tile& tile = tiles_[static_cast<std::size_t>(t)];
        if (tile.parts < 0) split_tile(&tile);
        members_.push_back(t);
        parts_[static_cast<std::size_t>(tile.parts + chunk - tile.chunk_begin)] = partial_rows_;
        partial_rows_ += tile.count * shape.group();
      }
    }
    begin = end;
  }
}

void AttentionPlan::split_tile(Tile* tile) {
  tile->parts = static_cast<std::int64_t>(parts_.size());
  parts_.resize(parts_.size() + static_cast<std::size_t>(tile->chunk_end - tile->chunk_begin), -1);
}

// What is not shared: a tile is one piece unless that would leave threads without work.
void AttentionPlan::add_pieces(const AttentionShape& shape, int threads) {
  const auto tiles = static_cast<std::int64_t>(tiles_.size());
  std::int64_t chunks = 0;
  double rows = 0;  // in all chunks
  for (const Tile& tile : tiles_) {
    chunks += tile.chunk_end - tile.chunk_begin;
    rows += static_cast<double>((tile.chunk_end - tile.chunk_begin) * tile.count * shape.group());
  }
  const bool split = threads > 1 && tiles < 4 * threads && chunks > tiles;
  for (std::int64_t t = tiles - 1; t >= 0; --t) {  // the longest come last in a span: start them
    Tile& tile = tiles_[static_cast<std::size_t>(t)];
    const auto member = static_cast<std::int64_t>(members_.size());
    members_.push_back(t);
    if (tile.parts < 0 && (!split || tile.chunk_end - tile.chunk_begin == 1)) {
      pieces_.push_back({member, 1, tile.chunk_begin, tile.chunk_end, -1});
      continue;
    }
    if (tile.parts < 0) split_tile(&tile);
    for (std::int64_t c = tile.chunk_begin; c < tile.chunk_end; ++c) {
      std::int64_t& part = parts_[static_cast<std::size_t>(tile.parts + c - tile.chunk_begin)];
      if (part >= 0) continue;
      part = partial_rows_;
      partial_rows_ += tile.count * shape.group();
      pieces_.push_back({member, 1, c, c + 1, part});
    }
  }
  // A chunk of keys and values: its bytes once for each tile that reads it by itself, its products
  // for every row.
  const double bytes = 0.15 * kMergeChunk * static_cast<double>(shape.padded_dim);
  const double products = 0.05 * kMergeChunk * static_cast<double>(shape.padded_dim);
  std::int64_t reads = 0;
  for (const Piece& piece : pieces_) reads += piece.chunk_end - piece.chunk_begin;
  cost_ = pieces_.empty() ? 0
                          : (bytes * static_cast<double>(reads) + products * rows) /
                                static_cast<double>(pieces_.size());
}

}  // namespace musespark

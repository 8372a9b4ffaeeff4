#include "ops/attention.h"

#include <algorithm>
#include <string>

#include "base/errors.h"
#include "ops/attention_tiles.h"

namespace musespark {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace

void check_attention_shape(const char* op, const AttentionShape& s) {
  const bool good = s.heads >= 1 && s.kv_heads >= 1 && s.heads % s.kv_heads == 0 &&
                    s.head_dim >= 1 && s.padded_dim == round_up(s.head_dim, 16) &&
                    s.padded_dim <= AttentionShape::kMaxHeadDim;
  if (good) return;
  throw InvalidRequest(std::string("[") + op + "] " + std::to_string(s.heads) + " heads, " +
                       std::to_string(s.kv_heads) + " KV heads of dimension " +
                       std::to_string(s.head_dim) + " (padded to " + std::to_string(s.padded_dim) +
                       ")");
}

namespace {

// The parts of a thread's scratch, for tiles of at most `rows` rows.
struct TileScratch {
  std::int64_t* pos;
  std::int64_t* lo;
  std::int64_t* hi;
  float* sinks;
  AttentionPartial* state;
  AttentionPartial* chunk;
  float* state_o;
  float* chunk_o;
  float* queries;  // of tiles that share pages, side by side
  std::byte* kernel;

  TileScratch(std::byte* base, std::int64_t rows, std::int64_t dp) {
    const auto carve = [&](std::int64_t bytes) {
      std::byte* at = base;
      base += round_up(bytes, 64);
      return at;
    };
    pos = reinterpret_cast<std::int64_t*>(carve(rows * 8));
    lo = reinterpret_cast<std::int64_t*>(carve(rows * 8));
    hi = reinterpret_cast<std::int64_t*>(carve(rows * 8));
    sinks = reinterpret_cast<float*>(carve(rows * 4));
    state = reinterpret_cast<AttentionPartial*>(carve(rows * 8));
    chunk = reinterpret_cast<AttentionPartial*>(carve(rows * 8));
    state_o = reinterpret_cast<float*>(carve(rows * dp * 4));
    chunk_o = reinterpret_cast<float*>(carve(rows * dp * 4));
    queries = reinterpret_cast<float*>(carve(rows * dp * 4));
    kernel = base;
  }
  static std::int64_t bytes(std::int64_t rows, std::int64_t dp) {
    return 3 * round_up(rows * 8, 64) + round_up(rows * 4, 64) + 2 * round_up(rows * 8, 64) +
           3 * round_up(rows * dp * 4, 64) + attention_scratch_bytes(rows, dp);
  }
};

}  // namespace

// One call of attend().
// Slabs of a merge chunk's pages, and their formats.
struct ChunkPages {
  const std::uint8_t* open[kPagesPerChunk];
  const std::uint8_t* sealed[kPagesPerChunk];
  KvFormat formats[kPagesPerChunk];
};

struct AttentionRun {
  Jobs& jobs;
  const KernelTable& kernels;
  const AttentionShape& shape;
  std::span<const AttentionSpan> spans;
  std::int64_t rows;
  AttentionPlan& plan;
  const float* queries;
  const float* sinks;
  float* out;
  const std::int64_t group = shape.group();
  const std::int64_t dp = shape.padded_dim;
  const std::int64_t most = most_tile_rows(shape);

  // Partial results by row of the plan: o [Dp] of all, then (max, sum) of all.
  float* part_o(std::int64_t row) const { return plan.partials_.as<float>() + row * dp; }
  AttentionPartial* part_state(std::int64_t row) const {
    return reinterpret_cast<AttentionPartial*>(part_o(plan.partial_rows_)) + row;
  }

  const AttentionPlan::Tile& tile_of(std::int64_t member) const {
    return plan.tiles_[static_cast<std::size_t>(plan.members_[static_cast<std::size_t>(member)])];
  }
  const AttentionSpan& span_of(const AttentionPlan::Tile& tile) const {
    return spans[static_cast<std::size_t>(tile.span)];
  }
  // Where a tile's rows begin in `queries` and `out`.
  std::int64_t offset(const AttentionPlan::Tile& tile) const {
    return (tile.kv_head * rows + span_of(tile).row + tile.first) * group * dp;
  }

  std::int64_t place_rows(const AttentionPlan::Piece& piece, const TileScratch& s) const;
  const float* gather_queries(const AttentionPlan::Piece& piece, float* to) const;
  void run_piece(std::int64_t index, int worker) const;
  void find_pages(const AttentionPlan::Tile& tile, std::int64_t chunk, ChunkPages* to) const;
  void fold(const AttentionPlan::Tile& tile, int worker) const;
  void finish(const AttentionPlan::Tile& tile, const AttentionPartial* state, const float* o,
              float* sink_rows) const;
};

// The slabs of a merge chunk's pages, null where the span has none, and their formats.
void AttentionRun::find_pages(const AttentionPlan::Tile& tile, std::int64_t chunk,
                              ChunkPages* to) const {
  const AttentionSpan& span = span_of(tile);
  const std::int64_t last = (span.position + span.rows - 1) / kPageTokens;
  for (std::int64_t i = 0; i < kPagesPerChunk; ++i) {
    const std::int64_t page = chunk * kPagesPerChunk + i;
    const KvPageView view =
        page <= last ? span.pages[page] : KvPageView{nullptr, nullptr, KvForm::body};
    const SealedSlab& slab = shape.slab(view.form, tile.kv_head);
    to->formats[i] = slab.format;
    to->open[i] = view.open
                      ? view.open + shape.slabs.open_offset + tile.kv_head * shape.slabs.open_stride
                      : nullptr;
    to->sealed[i] = view.sealed ? view.sealed + slab.offset : nullptr;
  }
}

// Positions of the piece's rows; how many there are.
std::int64_t AttentionRun::place_rows(const AttentionPlan::Piece& piece,
                                      const TileScratch& s) const {
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < piece.count; ++i) {
    const AttentionPlan::Tile& tile = tile_of(piece.first + i);
    for (std::int64_t r = 0; r < tile.count * group; ++r, ++n) {
      s.pos[n] = span_of(tile).position + tile.first + r / group;
      s.hi[n] = span_of(tile).last_seen(tile.first + r / group);
      s.lo[n] = shape.window == 0 ? 0 : std::max<std::int64_t>(0, s.pos[n] - shape.window + 1);
    }
  }
  return n;
}

// The piece's query rows, where they lie if that is side by side.
const float* AttentionRun::gather_queries(const AttentionPlan::Piece& piece, float* to) const {
  const std::int64_t begin = offset(tile_of(piece.first));
  std::int64_t end = begin;
  bool together = true;
  for (std::int64_t i = 0; i < piece.count; ++i) {
    const AttentionPlan::Tile& tile = tile_of(piece.first + i);
    together = together && offset(tile) == end;
    end += tile.count * group * dp;
  }
  if (together) return queries + begin;
  float* next = to;
  for (std::int64_t i = 0; i < piece.count; ++i) {
    const AttentionPlan::Tile& tile = tile_of(piece.first + i);
    next = std::copy_n(queries + offset(tile), tile.count * group * dp, next);
  }
  return to;
}

// A piece over its chunks, ascending: the first as it comes, the others merged into it. Beside the
// pages of a chunk the kernel is told those it will be called with next, here or for the piece that
// follows.
void AttentionRun::run_piece(std::int64_t index, int worker) const {
  const AttentionPlan::Piece& piece = plan.pieces_[static_cast<std::size_t>(index)];
  const TileScratch s(jobs.scratch(worker), most, dp);
  const std::int64_t n = place_rows(piece, s);
  const bool whole = piece.part < 0;
  AttentionPartial* state = whole ? s.state : part_state(piece.part);
  float* state_o = whole ? s.state_o : part_o(piece.part);
  ChunkPages pages, next;
  KvFormat formats[2 * kPagesPerChunk];
  AttendChunkArgs args{};
  args.head_dim = dp;
  args.rows = n;
  args.q = gather_queries(piece, s.queries);
  args.ldq = dp;
  args.pos = s.pos;
  args.lo = s.lo;
  args.hi = s.hi;
  args.softcap = shape.softcap;
  args.scratch = s.kernel;
  find_pages(tile_of(piece.first), piece.chunk_begin, &next);
  for (std::int64_t c = piece.chunk_begin; c < piece.chunk_end; ++c) {
    const bool first = c == piece.chunk_begin;
    pages = next;
    const auto following = static_cast<std::size_t>(index + 1);
    if (c + 1 < piece.chunk_end) {
      find_pages(tile_of(piece.first), c + 1, &next);
    } else if (following < plan.pieces_.size()) {
      const AttentionPlan::Piece& other = plan.pieces_[following];
      find_pages(tile_of(other.first), other.chunk_begin, &next);
    } else {
      std::fill_n(next.sealed, kPagesPerChunk, nullptr);
    }
    std::copy_n(pages.formats, kPagesPerChunk, formats);
    std::copy_n(next.formats, kPagesPerChunk, formats + kPagesPerChunk);
    args.chunk = c;
    args.formats = formats;
    args.open = pages.open;
    args.sealed = shape.floats ? nullptr : pages.sealed;
    args.next = shape.floats ? nullptr : next.sealed;
    args.partial = first ? state : s.chunk;
    args.o = first ? state_o : s.chunk_o;
    kernels.attend_chunk(&args);
    if (!first) kernels.attention_merge(n, dp, state, state_o, s.chunk, s.chunk_o);
  }
  if (whole) finish(tile_of(piece.first), state, state_o, s.sinks);
}

// Folds the chunks of a split tile, ascending: the same merges in the same order.
void AttentionRun::fold(const AttentionPlan::Tile& tile, int worker) const {
  if (tile.parts < 0) return;
  const std::int64_t* parts = plan.parts_.data() + tile.parts;
  AttentionPartial* state = part_state(parts[0]);
  float* o = part_o(parts[0]);
  for (std::int64_t c = 1; c < tile.chunk_end - tile.chunk_begin; ++c) {
    kernels.attention_merge(tile.count * group, dp, state, o, part_state(parts[c]),
                            part_o(parts[c]));
  }
  finish(tile, state, o, TileScratch(jobs.scratch(worker), most, dp).sinks);
}

// Divides by the sums and turns the outputs back into the model's frame.
void AttentionRun::finish(const AttentionPlan::Tile& tile, const AttentionPartial* state,
                          const float* o, float* sink_rows) const {
  const std::int64_t n = tile.count * group;
  float* to = out + offset(tile);
  if (sinks) {
    for (std::int64_t r = 0; r < n; ++r) sink_rows[r] = sinks[tile.kv_head * group + r % group];
  }
  kernels.attention_finish(n, dp, state, o, sinks ? sink_rows : nullptr, to, dp, dp);
  if (shape.floats) return;
  for (std::int64_t r = 0; r < n; ++r) kernels.rowwise.rotate(to + r * dp, dp, 1);
}

std::int64_t attend_scratch_bytes(const AttentionShape& shape) {
  return TileScratch::bytes(most_tile_rows(shape), shape.padded_dim);
}

void attend(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
            std::span<const AttentionSpan> spans, std::int64_t rows, AttentionPlan& plan,
            const float* queries, const float* sinks, float* out) {
  check_attention_shape("attend", shape);
  const AttentionRun run{jobs, kernels, shape, spans, rows, plan, queries, sinks, out};
  const auto needed = static_cast<std::size_t>(plan.partial_rows_) *
                      (static_cast<std::size_t>(run.dp) * sizeof(float) + sizeof(AttentionPartial));
  if (plan.partials_.size() < needed) plan.partials_ = AlignedBuffer(needed);
  const auto pieces = static_cast<std::int64_t>(plan.pieces_.size());
  jobs.run(pieces, plan.cost_, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) run.run_piece(i, worker);
  });
  if (plan.partial_rows_ == 0) return;
  const auto tiles = static_cast<std::int64_t>(plan.tiles_.size());
  const double cost =
      0.1 * static_cast<double>(plan.partial_rows_ * run.dp) / static_cast<double>(tiles);
  jobs.run(tiles, cost, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) {
      run.fold(plan.tiles_[static_cast<std::size_t>(i)], worker);
    }
  });
}

}  // namespace musespark

#include "ops/attention.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Query rows (positions x query heads of the group) a kernel call takes together: enough that a
// merge chunk of keys and values, read from the second-level cache, serves many. (256 against 64
// rows, four query heads to a KV head: 10% less time for a prefill of 512.)
constexpr std::int64_t kTileRows = 256;
constexpr std::int64_t kLeastTilePositions = 8;  // where smaller tiles keep all threads busy

std::int64_t tile_positions(const AttentionShape& shape) {
  return std::clamp<std::int64_t>(kTileRows / shape.group(), 1, kPageTokens);
}

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

void AttentionPlan::make(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                         int threads) {
  tiles_.clear();
  pieces_.clear();
  slots_ = 0;
  slot_rows_ = 0;
  std::int64_t rows = 0;
  for (const AttentionSpan& span : spans) rows += span.rows;
  std::int64_t step = tile_positions(shape);
  while (step > kLeastTilePositions && rows / step * shape.kv_heads < 4 * threads) step /= 2;
  std::int64_t chunks = 0;
  for (std::size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    for (std::int64_t at = 0; at < span.rows;) {
      const std::int64_t position = span.position + at;
      const std::int64_t page_end = (position / kPageTokens + 1) * kPageTokens;
      const std::int64_t count = std::min({step, span.rows - at, page_end - position});
      const std::int64_t lo =
          shape.window == 0 ? 0 : std::max<std::int64_t>(0, position - shape.window + 1);
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        tiles_.push_back({static_cast<std::int64_t>(s), h, at, count, lo / kMergeChunk,
                          (position + count - 1) / kMergeChunk + 1});
        chunks += tiles_.back().chunk_end - tiles_.back().chunk_begin;
      }
      at += count;
    }
  }
  const auto tiles = static_cast<std::int64_t>(tiles_.size());
  // A tile is one piece unless that would leave threads without work.
  const bool split = threads > 1 && tiles < 4 * threads && chunks > tiles;
  for (std::int64_t t = tiles - 1; t >= 0; --t) {  // the longest come last in a span: start them
    const Tile& tile = tiles_[static_cast<std::size_t>(t)];
    if (!split || tile.chunk_end - tile.chunk_begin == 1) {
      pieces_.push_back({t, tile.chunk_begin, tile.chunk_end, -1});
      continue;
    }
    for (std::int64_t c = tile.chunk_begin; c < tile.chunk_end; ++c) {
      pieces_.push_back({t, c, c + 1, slots_++});
    }
    slot_rows_ = std::max(slot_rows_, tile.count);
  }
  const double tile_rows =
      tiles_.empty() ? 1 : static_cast<double>(rows * shape.kv_heads) / static_cast<double>(tiles);
  // A chunk of keys and values: its bytes once, its products for every row.
  const double chunk_cost = kMergeChunk * static_cast<double>(shape.padded_dim) *
                            (0.15 + tile_rows * static_cast<double>(shape.group()) * 0.05);
  cost_ = pieces_.empty()
              ? 0
              : chunk_cost * static_cast<double>(chunks) / static_cast<double>(pieces_.size());
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
    kernel = base;
  }
  static std::int64_t bytes(std::int64_t rows, std::int64_t dp) {
    return 3 * round_up(rows * 8, 64) + round_up(rows * 4, 64) + 2 * round_up(rows * 8, 64) +
           2 * round_up(rows * dp * 4, 64) + attention_scratch_bytes(rows, dp);
  }
};

std::int64_t most_tile_rows(const AttentionShape& shape) {
  return tile_positions(shape) * shape.group();
}

}  // namespace

// One call of attend().
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

  // A slot of partial results: o [rows][Dp], then (max, sum) [rows].
  std::int64_t slot_rows() const { return plan.slot_rows_ * group; }
  std::int64_t slot_floats() const { return round_up(slot_rows() * (2 + dp), 16); }
  float* slot_o(std::int64_t slot) const {
    return plan.partials_.as<float>() + slot * slot_floats();
  }
  AttentionPartial* slot_state(std::int64_t slot) const {
    return reinterpret_cast<AttentionPartial*>(slot_o(slot) + slot_rows() * dp);
  }

  // Where a tile's rows begin in `queries` and `out`.
  std::int64_t offset(const AttentionPlan::Tile& tile) const {
    const AttentionSpan& span = spans[static_cast<std::size_t>(tile.span)];
    return (tile.kv_head * rows + span.row + tile.first) * group * dp;
  }

  void run_piece(const AttentionPlan::Piece& piece, int worker) const;
  void attend_chunk(const AttentionSpan& span, std::int64_t kv_head, AttendChunkArgs* args) const;
  void fold(const AttentionPlan::Piece& first, int worker) const;
  void finish(const AttentionPlan::Tile& tile, const AttentionPartial* state, const float* o,
              float* sink_rows) const;
};

// Finds the pages of a merge chunk, and those of the one after, and runs the kernel over it.
void AttentionRun::attend_chunk(const AttentionSpan& span, std::int64_t kv_head,
                                AttendChunkArgs* args) const {
  const std::uint8_t* open[2 * kPagesPerChunk];
  const std::uint8_t* sealed[2 * kPagesPerChunk];
  KvFormat formats[2 * kPagesPerChunk];
  const std::int64_t last = (span.position + span.rows - 1) / kPageTokens;
  for (std::int64_t i = 0; i < 2 * kPagesPerChunk; ++i) {
    const std::int64_t page = args->chunk * kPagesPerChunk + i;
    const KvPageView view =
        page <= last ? span.pages[page] : KvPageView{nullptr, nullptr, KvForm::body};
    const SealedSlab& slab = shape.slab(view.form, kv_head);
    formats[i] = slab.format;
    open[i] = view.open ? view.open + shape.slabs.open_offset + kv_head * shape.slabs.open_stride
                        : nullptr;
    sealed[i] = view.sealed ? view.sealed + slab.offset : nullptr;
  }
  args->open = open;
  args->formats = formats;
  args->sealed = shape.floats ? nullptr : sealed;
  args->next = shape.floats ? nullptr : sealed + kPagesPerChunk;
  kernels.attend_chunk(args);
}

// A tile over its chunks, ascending: the first as it comes, the others merged into it.
void AttentionRun::run_piece(const AttentionPlan::Piece& piece, int worker) const {
  const AttentionPlan::Tile& tile = plan.tiles_[static_cast<std::size_t>(piece.tile)];
  const AttentionSpan& span = spans[static_cast<std::size_t>(tile.span)];
  const TileScratch s(jobs.scratch(worker), most, dp);
  const std::int64_t n = tile.count * group;
  for (std::int64_t r = 0; r < n; ++r) {
    s.pos[r] = s.hi[r] = span.position + tile.first + r / group;
    s.lo[r] = shape.window == 0 ? 0 : std::max<std::int64_t>(0, s.pos[r] - shape.window + 1);
  }
  AttentionPartial* state = piece.slot < 0 ? s.state : slot_state(piece.slot);
  float* state_o = piece.slot < 0 ? s.state_o : slot_o(piece.slot);
  AttendChunkArgs args{};
  args.head_dim = dp;
  args.rows = n;
  args.q = queries + offset(tile);
  args.ldq = dp;
  args.pos = s.pos;
  args.lo = s.lo;
  args.hi = s.hi;
  args.softcap = shape.softcap;
  args.scratch = s.kernel;
  for (std::int64_t c = piece.chunk_begin; c < piece.chunk_end; ++c) {
    const bool first = c == piece.chunk_begin;
    args.chunk = c;
    args.partial = first ? state : s.chunk;
    args.o = first ? state_o : s.chunk_o;
    attend_chunk(span, tile.kv_head, &args);
    if (!first) kernels.attention_merge(n, dp, state, state_o, s.chunk, s.chunk_o);
  }
  if (piece.slot < 0) finish(tile, state, state_o, s.sinks);
}

// Folds the chunks of a split tile, ascending: the same merges in the same order.
void AttentionRun::fold(const AttentionPlan::Piece& first, int worker) const {
  const AttentionPlan::Tile& tile = plan.tiles_[static_cast<std::size_t>(first.tile)];
  if (first.slot < 0 || first.chunk_begin != tile.chunk_begin) return;
  AttentionPartial* state = slot_state(first.slot);
  float* o = slot_o(first.slot);
  for (std::int64_t c = 1; c < tile.chunk_end - tile.chunk_begin; ++c) {
    kernels.attention_merge(tile.count * group, dp, state, o, slot_state(first.slot + c),
                            slot_o(first.slot + c));
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
  const auto needed = static_cast<std::size_t>(plan.slots_ * run.slot_floats()) * sizeof(float);
  if (plan.partials_.size() < needed) plan.partials_ = AlignedBuffer(needed);
  const auto pieces = static_cast<std::int64_t>(plan.pieces_.size());
  jobs.run(pieces, plan.cost_, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) {
      run.run_piece(plan.pieces_[static_cast<std::size_t>(i)], worker);
    }
  });
  if (plan.slots_ == 0) return;
  const double cost = 0.1 * static_cast<double>(run.most * run.dp);
  jobs.run(pieces, cost, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) {
      run.fold(plan.pieces_[static_cast<std::size_t>(i)], worker);
    }
  });
}

}  // namespace musespark

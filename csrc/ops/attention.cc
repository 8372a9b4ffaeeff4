#include "ops/attention.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Query rows (positions x query heads of the group) a kernel call takes together: enough that an
// unpacked page serves many, few enough that scores and outputs stay in the first-level cache.
constexpr std::int64_t kTileRows = 64;

constexpr std::int64_t kMaxHeadDim = 512;

std::int64_t tile_positions(const AttentionShape& shape) {
  return std::clamp<std::int64_t>(kTileRows / shape.group(), 1, kPageTokens);
}

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

void check_shape(const char* op, const AttentionShape& s) {
  const bool good = s.heads >= 1 && s.kv_heads >= 1 && s.heads % s.kv_heads == 0 &&
                    s.head_dim >= 1 && s.padded_dim == round_up(s.head_dim, 16) &&
                    s.padded_dim <= kMaxHeadDim;
  if (good) return;
  throw InvalidRequest(std::string("[") + op + "] " + std::to_string(s.heads) + " heads, " +
                       std::to_string(s.kv_heads) + " KV heads of dimension " +
                       std::to_string(s.head_dim) + " (padded to " +
                       std::to_string(s.padded_dim) + ")");
}

// --- prepare_heads ---

struct HeadWriter {
  const KernelTable& kernels;
  const AttentionShape& shape;
  const HeadsArgs& args;
  std::int64_t rows;

  // Norm, rope and frame of one head; `to` has Dp floats, the padding zero before the frame.
  void prepare(const Norm& norm, bool rotate_positions, float scale, std::int64_t position,
               const float* from, float* to) const {
    const std::int64_t d = shape.head_dim;
    if (norm.kind == Norm::Kind::none) {
      std::memcpy(to, from, static_cast<std::size_t>(d) * sizeof(float));
    } else {
      norm_row(kernels, norm, from, d, to);
    }
    std::fill(to + d, to + shape.padded_dim, 0.0f);
    if (rotate_positions && args.rope) {
      kernels.rowwise.rope(to, args.rope->cos(position), args.rope->sin(position),
                           args.rope->half(), args.interleaved ? 1 : 0);
    }
    if (scale != 1.0f) kernels.rowwise.scale(to, scale, d, to);
    if (shape.format != KvFormat::f32) kernels.rowwise.rotate(to, shape.padded_dim, 0);
  }

  // The rows of a span that lie in one page, for one KV head and its query heads.
  void write(const AttentionSpan& span, std::int64_t page, std::int64_t kv_head) const {
    const std::int64_t d = shape.head_dim, dp = shape.padded_dim, group = shape.group();
    const std::int64_t begin = std::max(page * kPageTokens, span.position);
    const std::int64_t end = std::min((page + 1) * kPageTokens, span.position + span.rows);
    std::uint8_t* open = span.pages[page].open + shape.slabs.open_offset +
                         kv_head * shape.slabs.open_stride;
    alignas(64) float key[kMaxHeadDim];
    alignas(64) float value[kMaxHeadDim];
    for (std::int64_t position = begin; position < end; ++position) {
      const std::int64_t row = span.row + position - span.position;
      const float* in = args.qkv + row * args.ld;
      float* query = args.queries + ((kv_head * rows + row) * group) * dp;
      for (std::int64_t g = 0; g < group; ++g) {
        prepare(args.q_norm, true, args.query_scale, position, in + (kv_head * group + g) * d,
                query + g * dp);
      }
      prepare(args.k_norm, true, 1.0f, position, in + (shape.heads + kv_head) * d, key);
      prepare(Norm{}, false, 1.0f, position,
              in + (shape.heads + shape.kv_heads + kv_head) * d, value);
      kernels.write_token(shape.format, dp, position % kPageTokens, key, value, open);
    }
    if (shape.format != KvFormat::f32 && end == (page + 1) * kPageTokens) {
      kernels.seal_page(dp, open, span.pages[page].sealed + shape.slabs.sealed_offset +
                                      kv_head * shape.slabs.sealed_stride);
    }
  }
};

}  // namespace

void prepare_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                   std::span<const AttentionSpan> spans, std::int64_t rows,
                   const HeadsArgs& args) {
  check_shape("prepare_heads", shape);
  if (args.rope && 2 * args.rope->half() > shape.head_dim) {
    throw InvalidRequest("[prepare_heads] rope over " + std::to_string(2 * args.rope->half()) +
                         " of " + std::to_string(shape.head_dim) + " floats");
  }
  std::int64_t pieces = 0;   // (page of a span)
  for (const AttentionSpan& span : spans) {
    pieces += (span.position + span.rows - 1) / kPageTokens - span.position / kPageTokens + 1;
  }
  const HeadWriter writer{kernels, shape, args, rows};
  const double cost = static_cast<double>(rows * (shape.group() + 2) * shape.padded_dim) /
                      static_cast<double>(pieces);
  jobs.run(pieces * shape.kv_heads, cost, [&](std::int64_t begin, std::int64_t end, int) {
    std::int64_t base = 0;   // items of the spans before this one
    for (const AttentionSpan& span : spans) {
      const std::int64_t first = span.position / kPageTokens;
      const std::int64_t pages = (span.position + span.rows - 1) / kPageTokens - first + 1;
      const std::int64_t own = pages * shape.kv_heads;
      for (std::int64_t i = std::max(begin - base, std::int64_t{0}); i < std::min(end - base, own);
           ++i) {
        writer.write(span, first + i / shape.kv_heads, i % shape.kv_heads);
      }
      base += own;
      if (base >= end) break;
    }
  });
}

void AttentionPlan::make(const AttentionShape& shape, std::span<const AttentionSpan> spans,
                         int threads) {
  tiles_.clear();
  pieces_.clear();
  slots_ = 0;
  const std::int64_t step = tile_positions(shape);
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
  for (std::int64_t t = tiles - 1; t >= 0; --t) {   // the longest come last in a span: start them
    const Tile& tile = tiles_[static_cast<std::size_t>(t)];
    if (!split || tile.chunk_end - tile.chunk_begin == 1) {
      pieces_.push_back({t, tile.chunk_begin, tile.chunk_end, -1});
      continue;
    }
    for (std::int64_t c = tile.chunk_begin; c < tile.chunk_end; ++c) {
      pieces_.push_back({t, c, c + 1, slots_++});
    }
  }
  const double rows = static_cast<double>(std::min(step, spans.empty() ? 1 : spans[0].rows));
  // A chunk of keys and values: its bytes once, its products for every row.
  const double chunk_cost =
      kMergeChunk * static_cast<double>(shape.padded_dim) *
      (0.15 + rows * static_cast<double>(shape.group()) * 0.05);
  cost_ = pieces_.empty() ? 0
                          : chunk_cost * static_cast<double>(chunks) /
                                static_cast<double>(pieces_.size());
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

// Finds the pages of a merge chunk and runs the kernel over it.
void attend_chunk(const KernelTable& kernels, const AttentionShape& shape,
                  const AttentionSpan& span, std::int64_t kv_head, AttendChunkArgs* args) {
  const std::uint8_t* open[kPagesPerChunk];
  const std::uint8_t* sealed[kPagesPerChunk];
  const std::int64_t last = (span.position + span.rows - 1) / kPageTokens;
  for (std::int64_t i = 0; i < kPagesPerChunk; ++i) {
    const std::int64_t page = args->chunk * kPagesPerChunk + i;
    const KvPageView view = page <= last ? span.pages[page] : KvPageView{nullptr, nullptr};
    open[i] = view.open ? view.open + shape.slabs.open_offset + kv_head * shape.slabs.open_stride
                        : nullptr;
    sealed[i] = view.sealed ? view.sealed + shape.slabs.sealed_offset +
                                  kv_head * shape.slabs.sealed_stride
                            : nullptr;
  }
  args->open = open;
  args->sealed = shape.format == KvFormat::f32 ? nullptr : sealed;
  kernels.attend_chunk(args);
}

}  // namespace

std::int64_t attend_scratch_bytes(const AttentionShape& shape) {
  return TileScratch::bytes(most_tile_rows(shape), shape.padded_dim);
}

void attend(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
            std::span<const AttentionSpan> spans, std::int64_t rows, AttentionPlan& plan,
            const float* queries, const float* sinks, float* out) {
  check_shape("attend", shape);
  const std::int64_t group = shape.group(), dp = shape.padded_dim;
  const std::int64_t most = most_tile_rows(shape);
  const std::int64_t slot_floats = round_up(most * (2 + dp), 16);
  const auto needed = static_cast<std::size_t>(plan.slots_ * slot_floats) * sizeof(float);
  if (plan.partials_.size() < needed) plan.partials_ = AlignedBuffer(needed);
  auto* partials = plan.partials_.as<float>();

  // Divides by the sum and turns the outputs back into the model's frame.
  const auto finish = [&](const AttentionPlan::Tile& tile, const AttentionPartial* state,
                          const float* o, float* sink_rows) {
    const AttentionSpan& span = spans[static_cast<std::size_t>(tile.span)];
    const std::int64_t n = tile.count * group;
    float* to = out + ((tile.kv_head * rows + span.row + tile.first) * group) * dp;
    if (sinks) {
      for (std::int64_t r = 0; r < n; ++r) sink_rows[r] = sinks[tile.kv_head * group + r % group];
    }
    kernels.attention_finish(n, dp, state, o, sinks ? sink_rows : nullptr, to, dp, dp);
    if (shape.format == KvFormat::f32) return;
    for (std::int64_t r = 0; r < n; ++r) kernels.rowwise.rotate(to + r * dp, dp, 1);
  };

  const auto run_piece = [&](const AttentionPlan::Piece& piece, int worker) {
    const AttentionPlan::Tile& tile = plan.tiles_[static_cast<std::size_t>(piece.tile)];
    const AttentionSpan& span = spans[static_cast<std::size_t>(tile.span)];
    const TileScratch s(jobs.scratch(worker), most, dp);
    const std::int64_t n = tile.count * group;
    for (std::int64_t r = 0; r < n; ++r) {
      s.pos[r] = s.hi[r] = span.position + tile.first + r / group;
      s.lo[r] = shape.window == 0 ? 0 : std::max<std::int64_t>(0, s.pos[r] - shape.window + 1);
    }
    AttentionPartial* state = s.state;
    float* state_o = s.state_o;
    if (piece.slot >= 0) {
      state_o = partials + piece.slot * slot_floats;
      state = reinterpret_cast<AttentionPartial*>(state_o + most * dp);
    }
    AttendChunkArgs args{};
    args.format = shape.format;
    args.head_dim = dp;
    args.rows = n;
    args.q = queries + ((tile.kv_head * rows + span.row + tile.first) * group) * dp;
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
      attend_chunk(kernels, shape, span, tile.kv_head, &args);
      if (!first) kernels.attention_merge(n, dp, state, state_o, s.chunk, s.chunk_o);
    }
    if (piece.slot < 0) finish(tile, state, state_o, s.sinks);
  };
  const auto pieces = static_cast<std::int64_t>(plan.pieces_.size());
  jobs.run(pieces, plan.cost_, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t i = begin; i < end; ++i) {
      run_piece(plan.pieces_[static_cast<std::size_t>(i)], worker);
    }
  });
  if (plan.slots_ == 0) return;

  // Folds the chunks of every split tile, ascending: the same merges in the same order.
  const auto fold = [&](std::int64_t at, int worker) {
    const AttentionPlan::Piece& piece = plan.pieces_[static_cast<std::size_t>(at)];
    const AttentionPlan::Tile& tile = plan.tiles_[static_cast<std::size_t>(piece.tile)];
    if (piece.slot < 0 || piece.chunk_begin != tile.chunk_begin) return;
    const auto partial_of = [&](std::int64_t slot) {
      return reinterpret_cast<AttentionPartial*>(partials + slot * slot_floats + most * dp);
    };
    float* o = partials + piece.slot * slot_floats;
    const std::int64_t chunks = tile.chunk_end - tile.chunk_begin;
    for (std::int64_t c = 1; c < chunks; ++c) {
      kernels.attention_merge(tile.count * group, dp, partial_of(piece.slot), o,
                              partial_of(piece.slot + c),
                              partials + (piece.slot + c) * slot_floats);
    }
    finish(tile, partial_of(piece.slot), o, TileScratch(jobs.scratch(worker), most, dp).sinks);
  };
  jobs.run(pieces, static_cast<double>(most * dp) * 0.1,
           [&](std::int64_t begin, std::int64_t end, int worker) {
             for (std::int64_t i = begin; i < end; ++i) fold(i, worker);
           });
}

void join_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                const float* heads, std::int64_t rows, std::span<const std::int64_t> chosen,
                const float* gate, std::int64_t ld_gate, const Rows& out) {
  check_shape("join_heads", shape);
  const std::int64_t d = shape.head_dim, dp = shape.padded_dim, group = shape.group();
  if (out.cols != shape.heads * d || out.rows != static_cast<std::int64_t>(chosen.size())) {
    throw InvalidRequest("[join_heads] " + std::to_string(chosen.size()) + " rows of " +
                         std::to_string(shape.heads) + " heads of " + std::to_string(d) +
                         " into " + std::to_string(out.rows) + " x " + std::to_string(out.cols));
  }
  const double cost = static_cast<double>(out.cols) * (gate ? 0.6 : 0.2);
  jobs.run(out.rows, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = chosen[static_cast<std::size_t>(i)];
      float* to = out.x + i * out.ldx;
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t at = (h / group * rows + row) * group + h % group;
        std::memcpy(to + h * d, heads + at * dp, static_cast<std::size_t>(d) * sizeof(float));
      }
      if (gate) kernels.rowwise.sigmoid_mul(to, gate + row * ld_gate, out.cols, to);
      if (!out.q.q) continue;
      const QuantizedRows quantized = out.quantized_row(i);
      kernels.quantize_rows(to, out.cols, 1, out.cols, &quantized);
    }
  });
}

}  // namespace musespark

// Heads on their way into attention and out of it.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.h"
#include "ops/attention.h"

namespace musespark {
namespace {

struct HeadWriter {
  const KernelTable& kernels;
  const AttentionShape& shape;
  const HeadsArgs& args;
  std::int64_t rows;

  // cos, then sin of a row's rope, null where there is none; `room` for one that is put together.
  const float* turns(const AttentionSpan& span, std::int64_t position, float* room) const {
    const RopeTable* rope = span.short_rope ? args.short_rope : args.rope;
    if (rope == nullptr) return nullptr;
    if (span.places == nullptr) return rope->cos(position + span.shift);
    rope->at(span.places[position - span.position], room);
    return room;
  }

  // Norm, rope and frame of one head; `to` has Dp floats, the padding zero before the frame.
  void prepare(const Norm& norm, const float* turn, float scale, const float* from,
               float* to) const {
    const std::int64_t d = shape.head_dim;
    if (norm.kind == Norm::Kind::none) {
      std::memcpy(to, from, static_cast<std::size_t>(d) * sizeof(float));
    } else {
      norm_row(kernels, norm, from, d, to);
    }
    std::fill(to + d, to + shape.padded_dim, 0.0f);
    if (turn) {
      const std::int64_t half = args.rope->half();
      kernels.rowwise.rope(to, turn, turn + half, half, args.interleaved ? 1 : 0);
    }
    if (scale != 1.0f) kernels.rowwise.scale(to, scale, d, to);
    if (!shape.floats) kernels.rowwise.rotate(to, shape.padded_dim, 0);
  }

  // The rows of a span that lie in one page, for one KV head and its query heads.
  void write(const AttentionSpan& span, std::int64_t page, std::int64_t kv_head) const {
    const std::int64_t d = shape.head_dim, dp = shape.padded_dim, group = shape.group();
    const std::int64_t begin = std::max(page * kPageTokens, span.position);
    const std::int64_t end = std::min((page + 1) * kPageTokens, span.position + span.rows);
    std::uint8_t* open =
        span.pages[page].open + shape.slabs.open_offset + kv_head * shape.slabs.open_stride;
    const SealedSlab& slab = shape.slab(span.pages[page].form, kv_head);
    alignas(64) float key[AttentionShape::kMaxHeadDim];
    alignas(64) float value[AttentionShape::kMaxHeadDim];
    alignas(64) float room[AttentionShape::kMaxHeadDim];
    for (std::int64_t position = begin; position < end; ++position) {
      const std::int64_t row = span.row + position - span.position;
      const float* in = args.qkv + row * args.ld;
      const float* turn = turns(span, position, room);
      for (std::int64_t g = 0; args.queries != nullptr && g < group; ++g) {
        prepare(args.q_norm, turn, args.query_scale, in + (kv_head * group + g) * d,
                args.queries + ((kv_head * rows + row) * group + g) * dp);
      }
      prepare(args.k_norm, turn, 1.0f, in + (shape.heads + kv_head) * d, key);
      prepare(Norm{}, nullptr, 1.0f, in + (shape.heads + shape.kv_heads + kv_head) * d, value);
      kernels.write_token(slab.format, dp, position % kPageTokens, key, value, open);
    }
    if (!shape.floats && end == (page + 1) * kPageTokens) {
      kernels.seal_page(slab.format, dp, open, span.pages[page].sealed + slab.offset);
    }
  }
};

}  // namespace

void prepare_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                   std::span<const AttentionSpan> spans, std::int64_t rows, const HeadsArgs& args) {
  check_attention_shape("prepare_heads", shape);
  if (args.rope && 2 * args.rope->half() > shape.head_dim) {
    throw InvalidRequest("[prepare_heads] rope over " + std::to_string(2 * args.rope->half()) +
                         " of " + std::to_string(shape.head_dim) + " floats");
  }
  std::int64_t pieces = 0;  // (page of a span)
  for (const AttentionSpan& span : spans) {
    pieces += (span.position + span.rows - 1) / kPageTokens - span.position / kPageTokens + 1;
  }
  const HeadWriter writer{kernels, shape, args, rows};
  const double cost = static_cast<double>(rows * (shape.group() + 2) * shape.padded_dim) /
                      static_cast<double>(pieces);
  jobs.run(pieces * shape.kv_heads, cost, [&](std::int64_t begin, std::int64_t end, int) {
    std::int64_t base = 0;  // items of the spans before this one
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

void join_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                const float* heads, std::int64_t rows, std::span<const std::int64_t> chosen,
                const Norm& norm, const float* gate, std::int64_t ld_gate, const Rows& out) {
  check_attention_shape("join_heads", shape);
  const std::int64_t d = shape.head_dim, dp = shape.padded_dim, group = shape.group();
  if (out.cols != shape.heads * d || out.rows != static_cast<std::int64_t>(chosen.size())) {
    throw InvalidRequest("[join_heads] " + std::to_string(chosen.size()) + " rows of " +
                         std::to_string(shape.heads) + " heads of " + std::to_string(d) + " into " +
                         std::to_string(out.rows) + " x " + std::to_string(out.cols));
  }
  const double cost = static_cast<double>(out.cols) * (gate ? 0.6 : 0.2);
  jobs.run(out.rows, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = chosen[static_cast<std::size_t>(i)];
      float* to = out.x + i * out.ldx;
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t at = (h / group * rows + row) * group + h % group;
        norm_row(kernels, norm, heads + at * dp, d, to + h * d);
      }
      if (gate) kernels.rowwise.sigmoid_mul(to, gate + row * ld_gate, out.cols, to);
      out.quantize(kernels, i, to);
    }
  });
}

}  // namespace musespark

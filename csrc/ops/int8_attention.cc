#include "ops/int8_attention.h"

#include <algorithm>
#include <string>

#include "base/errors.h"
#include "kernels/attention/whole.h"

namespace musespark {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;
constexpr std::int64_t kTile = 128;  // query rows of an item: kernels take 32 at a time

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}
std::int64_t tiles_of(const TextSpan& text) { return (text.count + kTile - 1) / kTile; }

// A head of a text in `base`, or with null only its bytes.
struct PackedHead {
  WholeHead head{};
  std::int64_t bytes = 0;

  PackedHead(std::uint8_t* base, std::int64_t count, std::int64_t head_dim) {
    head.count = count;
    head.head_dim = head_dim;
    const auto carve = [&]<class T>(T*& to, std::int64_t items) {
      to = reinterpret_cast<T*>(base + bytes);
      bytes += round_up(items * std::int64_t{sizeof(T)}, 64);
    };
    const std::int64_t keys = whole_pages(head) * kWholePage, dim = round_up(head_dim, 16);
    carve(head.keys, keys * round_up(head_dim, 64));
    carve(head.values, keys * dim);
    carve(head.key_scale, whole_pages(head));
    carve(head.value_scale, dim);
    carve(head.value_mean, dim);
  }
};

struct Int8Attention {
  const KernelTable& kernels;
  const FullAttentionShape& shape;
  const float* qkv;
  std::int64_t ld;
  std::uint8_t* packed;
  const Rows& out;

  // `before`: bytes of the texts before this one.
  WholeHead head_of(const TextSpan& text, std::int64_t before, std::int64_t kv_head) const {
    const std::int64_t bytes = PackedHead(nullptr, text.count, shape.head_dim).bytes;
    return PackedHead(packed + before + kv_head * bytes, text.count, shape.head_dim).head;
  }
  std::int64_t bytes_of(const TextSpan& text) const {
    return shape.kv_heads * PackedHead(nullptr, text.count, shape.head_dim).bytes;
  }
  void pack(const TextSpan& text, std::int64_t before, std::int64_t kv_head) const {
    const float* k = qkv + text.first * ld + (shape.heads + kv_head) * shape.head_dim;
    const WholeHead head = head_of(text, before, kv_head);
    kernels.whole_pack(k, k + shape.kv_heads * shape.head_dim, ld, &head);
  }
  void attend(const TextSpan& text, std::int64_t before, std::int64_t index, std::int64_t tile,
              void* scratch) const {
    const std::int64_t first = tile * kTile, rows = std::min(kTile, text.count - first);
    const WholeHead head = head_of(text, before, index / (shape.heads / shape.kv_heads));
    const float* q = qkv + (text.first + first) * ld + index * shape.head_dim;
    float* to = out.x + (text.first + first) * out.ldx + index * shape.head_dim;
    kernels.whole_attend(&head, q, ld, rows, shape.scale * kLog2E, to, out.ldx, scratch);
  }
};

// Items of all texts, one after the other: own(text) of each; task(text, bytes before, item).
template <class Own, class Task>
void each_item(const Int8Attention& run, std::span<const TextSpan> texts, std::int64_t begin,
               std::int64_t end, const Own& own, const Task& task) {
  std::int64_t base = 0, before = 0;
  for (const TextSpan& text : texts) {
    const std::int64_t count = own(text), to = std::min(end - base, count);
    for (std::int64_t i = std::max(begin - base, std::int64_t{0}); i < to; ++i) {
      task(text, before, i);
    }
    base += count;
    before += run.bytes_of(text);
    if (base >= end) return;
  }
}

}  // namespace

std::int64_t int8_attention_bytes(const FullAttentionShape& shape,
                                  std::span<const TextSpan> texts) {
  std::int64_t bytes = 0;
  for (const TextSpan& text : texts) {
    bytes += shape.kv_heads * PackedHead(nullptr, text.count, shape.head_dim).bytes;
  }
  return bytes;
}

std::int64_t int8_attention_scratch_bytes(const FullAttentionShape& shape, std::int64_t longest) {
  return whole_scratch_bytes(longest, shape.head_dim);
}

void int8_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                    std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                    std::uint8_t* packed, const Rows& out) {
  if (out.cols != shape.heads * shape.head_dim || !out.x || shape.head_dim > kWholeMostDim) {
    throw InvalidRequest("[int8_attention] " + std::to_string(shape.heads) + " heads of " +
                         std::to_string(shape.head_dim) + " into rows of " +
                         std::to_string(out.cols) + (out.x ? "" : " without floats"));
  }
  const Int8Attention run{kernels, shape, qkv, ld, packed, out};
  const auto head_items = [&](const TextSpan&) { return shape.kv_heads; };
  const auto tile_items = [&](const TextSpan& text) { return tiles_of(text) * shape.heads; };
  const std::int64_t heads = static_cast<std::int64_t>(texts.size()) * shape.kv_heads;
  std::int64_t tiles = 0;
  double rows = 0, scores = 0;
  for (const TextSpan& text : texts) {
    tiles += tile_items(text);
    rows += static_cast<double>(text.count);
    scores += static_cast<double>(text.count * text.count * shape.heads);
  }
  const auto share = [](double cost, std::int64_t items) {
    return cost / static_cast<double>(std::max<std::int64_t>(items, 1));
  };
  const double floats = rows * static_cast<double>(shape.kv_heads * shape.head_dim);
  jobs.run(heads, share(floats, heads), [&](std::int64_t begin, std::int64_t end, int) {
    each_item(run, texts, begin, end, head_items,
              [&](const TextSpan& text, std::int64_t before, std::int64_t item) {
                run.pack(text, before, item);
              });
  });
  const double score_cost = 0.3 + static_cast<double>(shape.head_dim) * 0.01;
  jobs.run(tiles, share(scores * score_cost, tiles),
           [&](std::int64_t begin, std::int64_t end, int worker) {
             each_item(run, texts, begin, end, tile_items,
                       [&](const TextSpan& text, std::int64_t before, std::int64_t item) {
                         run.attend(text, before, item / tiles_of(text), item % tiles_of(text),
                                    jobs.scratch(worker));
                       });
           });
  quantize_rows(jobs, kernels, out);
}

}  // namespace musespark

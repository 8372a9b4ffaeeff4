#include "ops/full_attention.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

constexpr std::int64_t kTile = 64;  // query rows taken together: their scores stay in cache

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

// The parts of a thread's scratch, each at a cache line.
struct HeadScratch {
  float *keys, *values, *scores, *queries;
  std::byte* matmul;
  std::int64_t bytes;

  HeadScratch(std::byte* base, std::int64_t n, std::int64_t d) {
    const std::int64_t key_bytes = weight_layout(WeightFormat::f32, n, d).bytes;
    const std::int64_t value_bytes = weight_layout(WeightFormat::f32, d, n).bytes;
    const std::int64_t score_bytes = kTile * round_up(n, 16) * std::int64_t{sizeof(float)};
    const std::int64_t query_bytes = round_up(kTile * d * std::int64_t{sizeof(float)}, 64);
    keys = reinterpret_cast<float*>(base);
    values = reinterpret_cast<float*>(base + key_bytes);
    scores = reinterpret_cast<float*>(base + key_bytes + value_bytes);
    queries = reinterpret_cast<float*>(base + key_bytes + value_bytes + score_bytes);
    matmul = base + key_bytes + value_bytes + score_bytes + query_bytes;
    bytes = key_bytes + value_bytes + score_bytes + query_bytes +
            std::max(matmul_scratch_bytes(WeightFormat::f32, d, kTile),
                     matmul_scratch_bytes(WeightFormat::f32, n, kTile));
  }
};

// An empty packed f32 matrix; padding of its last row block is zero.
PackedMatrix blank(std::int64_t rows, std::int64_t cols, float* to) {
  const WeightLayout layout = weight_layout(WeightFormat::f32, rows, cols);
  const std::int64_t last = (rows - 1) / kRowBlock * layout.row_block_bytes;
  if (rows % kRowBlock != 0) {
    std::memset(reinterpret_cast<std::byte*>(to) + last, 0,
                static_cast<std::size_t>(layout.row_block_bytes));
  }
  return {reinterpret_cast<const std::uint8_t*>(to), layout.row_block_bytes, rows, cols,
          WeightFormat::f32};
}

// The matrix whose row j is x[j * ld], d floats.
PackedMatrix pack_keys(const float* x, std::int64_t n, std::int64_t d, std::int64_t ld, float* to) {
  const PackedMatrix out = blank(n, d, to);
  const std::int64_t block = out.row_block_bytes / std::int64_t{sizeof(float)};
  for (std::int64_t first = 0; first < n; first += kRowBlock) {
    float* at = to + first / kRowBlock * block;
    const std::int64_t rows = std::min<std::int64_t>(kRowBlock, n - first);
    for (std::int64_t r = 0; r < rows; ++r) fetch_head(x + (first + kRowBlock + r) * ld, 0, d);
    for (std::int64_t col = 0; col < d; ++col) {
      for (std::int64_t r = 0; r < rows; ++r) at[col * kRowBlock + r] = x[(first + r) * ld + col];
    }
  }
  return out;
}

// Its transpose: the matrix of d rows whose column j is x[j * ld].
PackedMatrix pack_values(const float* x, std::int64_t n, std::int64_t d, std::int64_t ld,
                         float* to) {
  const PackedMatrix out = blank(d, n, to);
  const std::int64_t block = out.row_block_bytes / std::int64_t{sizeof(float)};
  for (std::int64_t col = 0; col < n; ++col) {
    fetch_head(x + col * ld, ld, d);
    for (std::int64_t first = 0; first < d; first += kRowBlock) {
      const std::int64_t rows = std::min<std::int64_t>(kRowBlock, d - first);
      std::copy_n(x + col * ld + first, rows, to + first / kRowBlock * block + col * kRowBlock);
    }
  }
  return out;
}

void product(const KernelTable& kernels, const PackedMatrix& w, const float* x, std::int64_t ldx,
             std::int64_t rows, float* out, std::int64_t ldo, void* scratch) {
  MatmulArgs args{};
  args.w = w;
  args.x = x;
  args.ldx = ldx;
  args.m = rows;
  args.block_end = (w.rows + kRowBlock - 1) / kRowBlock;
  args.out = out;
  args.ldo = ldo;
  args.scratch = scratch;
  kernels.matmul(&args);
}

struct FullAttention {
  const KernelTable& kernels;
  const FullAttentionShape& shape;
  const float* qkv;
  std::int64_t ld;
  const Rows& out;

  // All rows of a text for the query heads of one KV head.
  void operator()(const TextSpan& text, std::int64_t kv_head, std::byte* base) const {
    const std::int64_t n = text.count, d = shape.head_dim;
    const HeadScratch scratch(base, n, d);
    const float* rows = qkv + text.first * ld;
    const float* k = rows + (shape.heads + kv_head) * d;
    const PackedMatrix keys = pack_keys(k, n, d, ld, scratch.keys);
    const PackedMatrix values = pack_values(k + shape.kv_heads * d, n, d, ld, scratch.values);
    const std::int64_t group = shape.heads / shape.kv_heads;
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (std::int64_t at = 0; at < n; at += kTile) {
        tile(rows + at * ld + head * d, keys, values, std::min(kTile, n - at), scratch,
             out.x + (text.first + at) * out.ldx + head * d);
      }
    }
  }

  void tile(const float* queries, const PackedMatrix& keys, const PackedMatrix& values,
            std::int64_t rows, const HeadScratch& scratch, float* to) const {
    const std::int64_t n = keys.rows, d = keys.cols, ld_scores = round_up(n, 16);
    for (std::int64_t r = 0; r < rows; ++r) {
      fetch_head(queries + r * ld, ld, d);
      kernels.rowwise.scale(queries + r * ld, shape.scale, d, scratch.queries + r * d);
    }
    product(kernels, keys, scratch.queries, d, rows, scratch.scores, ld_scores, scratch.matmul);
    float sum[kTile];
    for (std::int64_t r = 0; r < rows; ++r) {
      float* p = scratch.scores + r * ld_scores;
      sum[r] = kernels.rowwise.exp_sum(p, kernels.rowwise.row_max(p, n), n, p);
    }
    product(kernels, values, scratch.scores, ld_scores, rows, to, out.ldx, scratch.matmul);
    for (std::int64_t r = 0; r < rows; ++r) {
      kernels.rowwise.scale(to + r * out.ldx, 1.0f / sum[r], d, to + r * out.ldx);
    }
  }
};

}  // namespace

std::int64_t full_attention_scratch_bytes(const FullAttentionShape& shape, std::int64_t longest) {
  return HeadScratch(nullptr, longest, shape.head_dim).bytes;
}

void full_attention(Jobs& jobs, const KernelTable& kernels, const FullAttentionShape& shape,
                    std::span<const TextSpan> texts, const float* qkv, std::int64_t ld,
                    const Rows& out) {
  if (out.cols != shape.heads * shape.head_dim || !out.x) {
    throw InvalidRequest("[full_attention] " + std::to_string(shape.heads) + " heads of " +
                         std::to_string(shape.head_dim) + " into rows of " +
                         std::to_string(out.cols) + (out.x ? "" : " without floats"));
  }
  const FullAttention attention{kernels, shape, qkv, ld, out};
  const auto count = static_cast<std::int64_t>(texts.size());
  double products = 0;
  for (const TextSpan& text : texts) {
    products += 2.0 * static_cast<double>(text.count * text.count * shape.head_dim * shape.heads);
  }
  const std::int64_t items = count * shape.kv_heads;
  jobs.run(items, products / 8.0 / static_cast<double>(std::max<std::int64_t>(items, 1)),
           [&](std::int64_t begin, std::int64_t end, int worker) {
             for (std::int64_t i = begin; i < end; ++i) {
               attention(texts[static_cast<std::size_t>(i / shape.kv_heads)], i % shape.kv_heads,
                         jobs.scratch(worker));
             }
           });
  quantize_rows(jobs, kernels, out);
}

}  // namespace musespark

// Attention over whole texts with a level's dot products (detail/dot_<level>.inl): sixteen query
// rows at a time, all scores, then all weights, then all values.
#pragma once

#include <cstdint>

#include "kernels/attention/products_dot.inl"
#include "kernels/attention/whole.inl"

namespace musespark {
namespace {

constexpr std::int32_t kKeyFlip = static_cast<std::int32_t>(0x80808080u);  // unsigned: +128

struct WholeBlock {
  const WholeHead* head;
  std::int64_t rows, depth, keys;  // keys: between rows of sums and weights
  WholeRow row[kWholeRows];
  dot_weight* query;       // [rows][depth]
  std::int32_t* dots;      // [rows][keys]
  dot_weight *low, *high;  // [rows][keys]
};

template <int kRows, int kBlocks>
void whole_key_tile(const WholeBlock& block, std::int64_t r, const std::uint8_t* codes,
                    std::int32_t* to) {
  const Panel<std::uint8_t> panel = {codes, 64, 16 * block.depth, block.depth / 4};
  vi acc[kRows][kBlocks];
  unroll<kRows>([&](auto i) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[i][b] = iset(block.row[r + i].bias); });
  });
  dot_steps<false>(panel, block.query + r * block.depth, block.depth, nullptr, acc);
  unroll<kRows>([&](auto i) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { istore(to + i * block.keys + 16 * b, acc[i][b]); });
  });
}

void whole_scores(const WholeBlock& block) {
  const std::int64_t blocks = 4 * whole_pages(*block.head);
  for (std::int64_t first = 0; first < blocks; first += 4) {
    each_tile(block.rows, 4,
              [&](std::int64_t r, std::int64_t height, std::int64_t b, std::int64_t width) {
                const std::uint8_t* codes = block.head->keys + (first + b) * 16 * block.depth;
                std::int32_t* to = block.dots + r * block.keys + 16 * (first + b);
                with_count<kTileRows>(height, [&](auto h) {
                  with_count<kTileBlocks>(width, [&](auto n) {
                    whole_key_tile<h.value, n.value>(block, r, codes, to);
                  });
                });
              });
  }
}

// Sums of `planes` of rows from r on and kBlocks vectors of channels over pages [begin, end).
template <int kRows, int kBlocks>
void whole_value_sums(const WholeBlock& block, const dot_weight* plane, std::int64_t r,
                      std::int64_t d, std::int64_t begin, std::int64_t end,
                      const std::int32_t* bias, vi (&acc)[kRows][kBlocks]) {
  const std::int64_t dim = value_dim(*block.head);
  const Panel<std::uint8_t> panel = {block.head->values + begin * kWholePage * dim + 4 * d, 4 * dim,
                                     64, (end - begin) * kWholePage / 4};
  unroll<kRows>([&](auto i) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[i][b] = iset(bias[r + i]); });
  });
  dot_steps<true>(panel, plane + r * block.keys + begin * kWholePage, block.keys, nullptr, acc);
}

// kValueBias times the sum of a row's plane.
std::int32_t plane_bias(const dot_weight* plane, std::int64_t count) {
  if (kValueBias == 0) return 0;
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<std::uint8_t>(plane[i]);
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(kValueBias) *
                                   static_cast<std::uint32_t>(sum));
}

// a [rows][D padded] += the pages' sums.
void whole_add_values(const WholeBlock& block, std::int64_t begin, std::int64_t end, float* a) {
  const std::int64_t dim = value_dim(*block.head);
  std::int32_t low_bias[kWholeRows], high_bias[kWholeRows];
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const std::int64_t at = r * block.keys + begin * kWholePage, count = (end - begin) * kWholePage;
    low_bias[r] = plane_bias(block.low + at, count);
    high_bias[r] = plane_bias(block.high + at, count);
  }
  each_tile(block.rows, dim / 16,
            [&](std::int64_t r, std::int64_t height, std::int64_t b, std::int64_t width) {
              with_count<kTileRows>(height, [&](auto h) {
                with_count<kTileBlocks>(width, [&](auto n) {
                  vi low[h.value][n.value], high[h.value][n.value];
                  whole_value_sums<h.value, n.value>(block, block.high, r, 16 * b, begin, end,
                                                     high_bias, high);
                  whole_value_sums<h.value, n.value>(block, block.low, r, 16 * b, begin, end,
                                                     low_bias, low);
                  unroll<h.value>([&](auto i) MS_LAMBDA {
                    unroll<n.value>([&](auto j) MS_LAMBDA {
                      float* to = a + (r + i) * dim + 16 * (b + j);
                      vstore(to, vadd(vload(to), whole_joined(low[i][j], high[i][j])));
                    });
                  });
                });
              });
            });
}

void whole_block(WholeBlock* block, const float* q, std::int64_t ldq, float factor, float* out,
                 std::int64_t ldo) {
  const WholeHead& head = *block->head;
  const std::int64_t dim = value_dim(head);
  float a[kWholeRows * kWholeMostDim], largest[kWholeRows];
  for (std::int64_t r = 0; r < block->rows; ++r) {
    whole_query(q + r * ldq, ldq, head.head_dim, block->depth, factor,
                block->query + r * block->depth, &block->row[r]);
    for (std::int64_t d = 0; d < dim; d += 16) vstore(a + r * dim + d, vset(0.0f));
  }
  whole_scores(*block);
  for (std::int64_t r = 0; r < block->rows; ++r) {
    largest[r] = whole_largest(head, block->dots + r * block->keys, &block->row[r]);
    block->row[r].sum = 0.0f;
  }
  for (std::int64_t g = 0; g < whole_pages(head); g += kWholeSumPages) {
    const std::int64_t end =
        whole_pages(head) - g < kWholeSumPages ? whole_pages(head) : g + kWholeSumPages;
    for (std::int64_t r = 0; r < block->rows; ++r) {
      const std::int64_t at = r * block->keys;
      if (!block->row[r].usable) {
        __builtin_memset(block->low + at, 0,
                         static_cast<std::size_t>(block->keys) * sizeof *block->low);
        __builtin_memset(block->high + at, 0,
                         static_cast<std::size_t>(block->keys) * sizeof *block->low);
        continue;
      }
      block->row[r].sum +=
          static_cast<float>(whole_weights(head, block->dots + at, block->row[r], largest[r], g,
                                           end, block->low + at, block->high + at));
    }
    whole_add_values(*block, g, end, a);
  }
  for (std::int64_t r = 0; r < block->rows; ++r) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      whole_finish(head, block->row[r], d, vload(a + r * dim + d), out + r * ldo);
    }
  }
}

void whole_rows(const WholeHead& head, const float* q, std::int64_t ldq, std::int64_t rows,
                float factor, float* out, std::int64_t ldo, void* scratch) {
  WholeBlock block;
  block.head = &head;
  block.depth = value_dim(head);
  block.keys = whole_pages(head) * kWholePage + 64;  // not a power of two apart
  block.dots = static_cast<std::int32_t*>(scratch);
  block.query = reinterpret_cast<dot_weight*>(block.dots + kWholeRows * block.keys);
  block.low = block.query + kWholeRows * block.depth;
  block.high = block.low + kWholeRows * block.keys;
  for (std::int64_t r = 0; r < rows; r += kWholeRows) {
    block.rows = rows - r < kWholeRows ? rows - r : kWholeRows;
    whole_block(&block, q + r * ldq, ldq, factor, out + r * ldo, ldo);
  }
}

}  // namespace
}  // namespace musespark

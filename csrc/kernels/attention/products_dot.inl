// Products of sealed pages over the vector vocabulary and a level's dot products
// (detail/dot_<level>.inl): tiles of kTileRows query rows times kTileBlocks vectors.
#pragma once

#include <cstdint>

#include "kernels/attention/rows.inl"

namespace musespark {
namespace {

constexpr int kFetchSteps = kTileBlocks == 1 ? 4 : 2;  // products between lines that are fetched

// acc[r][b] += sum over steps of four codes times w[r * ldw + 4 * step ..], exact. `steps` is a
// multiple of four.
template <bool kUnsignedWeights, int kRows, int kBlocks>
MS_INLINE void dot_steps(const Panel<std::uint8_t>& panel, const dot_weight* w, std::int64_t ldw,
                         Fetch* fetch, vi (&acc)[kRows][kBlocks]) {
  const std::uint8_t* data = panel.data;
  for (std::int64_t step = 0; step < panel.steps;) {
    if (fetch) fetch->beside(kFetchSteps * kBlocks);
    for (int i = 0; i < kFetchSteps; i += kDotSteps, step += kDotSteps) {
      // The count hidden: GCC 12 unrolls sixteen steps of four and spills the accumulators.
      if constexpr (kDotSteps > 1 || kTileBlocks == 1) __asm__("" : "+r"(i));
      unroll<kDotSteps>([&](auto s) MS_LAMBDA {
        vcodes column[kBlocks];
        unroll<kBlocks>([&](auto b) MS_LAMBDA {
          column[b] = load_codes<kUnsignedWeights>(data + b * panel.block_stride);
        });
        unroll<kRows>([&](auto r) MS_LAMBDA {
          unroll<kBlocks>([&](auto b) MS_LAMBDA {
            acc[r][b] =
                vdot<kUnsignedWeights, s.value>(acc[r][b], column[b], w + r * ldw + 4 * step);
          });
        });
        data += panel.step_stride;
      });
    }
  }
}

// Scores of one sealed page: fma(dot, qscale * kscale, q . mean). key_scale: one float per lane;
// mean_product: one in sixteen floats.
template <int kRows, int kBlocks>
void key_tile(const Panel<std::uint8_t>& panel, const dot_weight* w, std::int64_t ldw,
              const QueryRow* row, const float* key_scale, const float* mean_product, float* score,
              Fetch* fetch) {
  vi acc[kRows][kBlocks];
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = iset(row[r].bias); });
  });
  dot_steps<false>(panel, w, ldw, fetch, acc);
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      const vf scale = vmul(vset(row[r].scale), vload(key_scale + b * 16));
      vstore(score + r * kMergeChunk + b * 16,
             vfma(vconvert(acc[r][b]), scale, vset(mean_product[16 * r])));
    });
  });
}

// P of a page and what is known of it, for consecutive rows.
struct PageWeights {
  const dot_weight* low;   // rows kWeightStride apart
  const dot_weight* high;  // null: one plane
  const float* step;       // rows 16 apart, as are the biases
  const std::int32_t* bias;
  const std::int32_t* high_bias;
};

// o += (sum of P * codes) * step. Two planes: the high bytes of P first, then the low ones.
template <int kRows, int kBlocks>
void value_tile(const Panel<std::uint8_t>& panel, const PageWeights& p, std::int64_t ldw, float* o,
                std::int64_t ldo, Fetch* fetch) {
  vi acc[kRows][kBlocks];
  const auto start = [&](const std::int32_t* bias, auto r)
                         MS_LAMBDA { return iset(kValueBias == 0 ? 0 : bias[16 * r]); };
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA { acc[r][b] = start(p.high ? p.high_bias : p.bias, r); });
  });
  if (p.high) {
    dot_steps<true>(panel, p.high, ldw, nullptr, acc);
    unroll<kRows>([&](auto r) MS_LAMBDA {
      unroll<kBlocks>([&](auto b)
                          MS_LAMBDA { acc[r][b] = iadd(ishl<8>(acc[r][b]), start(p.bias, r)); });
    });
  }
  dot_steps<true>(panel, p.low, ldw, fetch, acc);
  unroll<kRows>([&](auto r) MS_LAMBDA {
    unroll<kBlocks>([&](auto b) MS_LAMBDA {
      float* to = o + r * ldo + b * 16;
      vstore(to, vfma(vconvert(acc[r][b]), vset(p.step[16 * r]), vload(to)));
    });
  });
}

void score_rows(RowBlock* block, const std::uint8_t* codes, std::int64_t p, std::int64_t begin,
                std::int64_t end) {
  each_tile(end - begin, 4,
            [&](std::int64_t i, std::int64_t height, std::int64_t b, std::int64_t width) {
              const std::int64_t r = begin + i;
              const Panel<std::uint8_t> panel = {codes + b * 16 * block->dim, 64, 16 * block->dim,
                                                 block->dim / 4};
              with_count<kTileRows>(height, [&](auto h) {
                with_count<kTileBlocks>(width, [&](auto n) {
                  key_tile<h.value, n.value>(
                      panel, block->query + r * block->dim, block->dim, block->sealed + r,
                      block->key_scale + p * kPageTokens + 16 * b, block->mean_product + 16 * r + p,
                      block->score + r * kMergeChunk + p * kPageTokens + 16 * b,
                      i == 0 ? &block->fetch : nullptr);
                });
              });
            });
}

void add_rows(RowBlock* block, const std::uint8_t* codes, std::int64_t p, std::int64_t begin,
              std::int64_t end) {
  const bool two_planes = block->args->chunk == 0 && p == 0;
  each_tile(
      end - begin, block->dim / 16,
      [&](std::int64_t i, std::int64_t height, std::int64_t b, std::int64_t width) {
        const std::int64_t r = begin + i;
        const Panel<std::uint8_t> panel = {codes + 64 * b, 4 * block->dim, 64, kPageTokens / 4};
        const dot_weight* w = block->weight + r * kWeightStride;
        const std::int32_t* bias = block->value_bias + 16 * r;
        const PageWeights weights = {w + p * kPageTokens, two_planes ? w + kMergeChunk : nullptr,
                                     block->step + 16 * r + p, bias + p, bias + kPagesPerChunk};
        float* o = block->o + r * block->dim + 16 * b;
        with_count<kTileRows>(height, [&](auto h) {
          with_count<kTileBlocks>(width, [&](auto n) {
            value_tile<h.value, n.value>(panel, weights, kWeightStride, o, block->dim,
                                         i == 0 ? &block->fetch : nullptr);
          });
        });
      });
}

// What AMX does around a call and after the last page.
void start_products(const AttendChunkArgs&) {}
void end_products(const AttendChunkArgs&) {}
void finish_scores(RowBlock*) {}
void finish_values(RowBlock*) {}

}  // namespace
}  // namespace musespark

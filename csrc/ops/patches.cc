#include "ops/patches.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kMaxHeadDim = 512;

void add_shares(const KernelTable& kernels, const PatchPlaces& from, std::int64_t row,
                std::int64_t cols, float* sum, float* x) {
  const auto at = static_cast<std::size_t>(row);
  const std::int64_t begin = row == 0 ? 0 : from.share_end[at - 1], end = from.share_end[at];
  if (begin == end) return;
  std::fill_n(sum, cols, 0.0f);
  for (std::int64_t i = begin; i < end; ++i) {
    const PositionShare& share = from.share[static_cast<std::size_t>(i)];
    const float* entry = from.table + share.entry * cols;
    for (std::int64_t c = 0; c < cols; ++c) sum[c] += share.weight * entry[c];
  }
  kernels.rowwise.add(x, sum, cols, x);
}

void merge_one(const KernelTable& kernels, const TokenRows& from, const std::int64_t* members,
               float* normed, float* token) {
  const std::int64_t n = from.cols;
  if (from.merge == Merge::average) std::fill_n(token, n, 0.0f);
  for (std::int64_t m = 0; m < from.each; ++m) {
    const float* x = from.x + members[m] * from.ldx;
    if (from.merge == Merge::concat) {
      norm_row(kernels, from.norm, x, n, token + m * n);
      continue;
    }
    norm_row(kernels, from.norm, x, n, normed);
    if (from.merge == Merge::average) {
      kernels.rowwise.add(token, normed, n, token);
    } else {
      for (std::int64_t c = 0; c < n; ++c) token[c * from.each + m] = normed[c];
    }
  }
  if (from.merge == Merge::average) {
    kernels.rowwise.scale(token, 1.0f / static_cast<float>(from.each), n, token);
  }
}

}  // namespace

void place_patches(Jobs& jobs, const KernelTable& kernels, const PatchPlaces& from,
                   const Residual& residual, const Norm& embed_norm, const Norm& next,
                   const Rows& out) {
  const std::int64_t n = residual.cols;
  jobs.run(residual.rows, static_cast<double>(n) * 3.0,
           [&](std::int64_t begin, std::int64_t end, int worker) {
             auto* sum = reinterpret_cast<float*>(jobs.scratch(worker));
             for (std::int64_t row = begin; row < end; ++row) {
               const std::int64_t patch = from.patch[static_cast<std::size_t>(row)];
               float* x = residual.x + row * residual.ldx;
               const float* own = patch < 0 ? from.class_token : from.embedded + patch * from.ld;
               std::copy_n(own, n, x);
               if (from.table) add_shares(kernels, from, row, n, sum, x);
               norm_row(kernels, embed_norm, x, n, x);
               norm_row(kernels, next, x, n, out.x + row * out.ldx);
               out.quantize(kernels, row, out.x + row * out.ldx);
             }
           });
}

void axial_rope(Jobs& jobs, const KernelTable& kernels, const AxialPlaces& places,
                std::int64_t heads, std::int64_t head_dim, float* x, std::int64_t ldx) {
  const std::int64_t quarter = places.rope->half();
  if (quarter * 4 != head_dim || head_dim > kMaxHeadDim) {
    throw InvalidRequest("[axial_rope] " + std::to_string(quarter) + " frequencies for heads of " +
                         std::to_string(head_dim));
  }
  const auto rows = static_cast<std::int64_t>(places.outer.size());
  jobs.run(rows, static_cast<double>(heads * head_dim) * 0.3,
           [&](std::int64_t begin, std::int64_t end, int) {
             float cos[kMaxHeadDim / 2], sin[kMaxHeadDim / 2];
             for (std::int64_t row = begin; row < end; ++row) {
               const auto at = static_cast<std::size_t>(row);
               const std::int64_t outer = places.first + places.outer[at];
               const std::int64_t inner = places.first + places.inner[at];
               std::copy_n(places.rope->cos(outer), quarter, cos);
               std::copy_n(places.rope->cos(inner), quarter, cos + quarter);
               std::copy_n(places.rope->sin(outer), quarter, sin);
               std::copy_n(places.rope->sin(inner), quarter, sin + quarter);
               for (std::int64_t head = 0; head < heads; ++head) {
                 kernels.rowwise.rope(x + row * ldx + head * head_dim, cos, sin, 2 * quarter, 0);
               }
             }
           });
}

std::int64_t merge_scratch_floats(std::int64_t cols, std::int64_t each) {
  return cols * (each + 1);
}

void merge_rows(Jobs& jobs, const KernelTable& kernels, const TokenRows& from, const Rows& out) {
  const std::int64_t width = from.merge == Merge::average ? from.cols : from.cols * from.each;
  if (out.cols != width || out.rows * from.each != static_cast<std::int64_t>(from.members.size())) {
    throw InvalidRequest("[merge_rows] " + std::to_string(from.members.size()) + " rows, " +
                         std::to_string(from.each) + " a token of " + std::to_string(width) +
                         ", into " + std::to_string(out.rows) + " of " + std::to_string(out.cols));
  }
  jobs.run(out.rows, static_cast<double>(from.cols * from.each) * 0.5,
           [&](std::int64_t begin, std::int64_t end, int worker) {
             auto* token = reinterpret_cast<float*>(jobs.scratch(worker));
             float* normed = token + from.cols * from.each;
             for (std::int64_t t = begin; t < end; ++t) {
               merge_one(kernels, from, from.members.data() + t * from.each, normed, token);
               float* to = out.x + t * out.ldx;
               norm_row(kernels, from.merged_norm, token, width, to);
               out.quantize(kernels, t, to);
             }
           });
}

}  // namespace musespark

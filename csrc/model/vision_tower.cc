#include "model/vision_tower.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "model/vision_plan.h"
#include "model/vision_prepared.h"
#include "ops/full_attention.h"
#include "ops/int8_attention.h"
#include "ops/patches.h"
#include "ops/rows_buffer.h"

namespace musespark {
namespace {

// Rows a batch may have beyond its first frame: enough that weights are read for many, little
// enough for any memory.
constexpr std::int64_t kBatchRows = 4096;
constexpr std::int64_t kBatchShares = std::int64_t{1} << 22;  // of the table of positions
constexpr int kForms = 3;  // quantized ones, of rows that several matrices read
constexpr std::int64_t kMaxPatches = std::int64_t{1} << 20;  // of a frame, and frames of a grid

VisionSpec checked(VisionSpec spec) {
  check_spec(spec);
  return spec;
}

[[noreturn]] void refuse(std::size_t index, const Grid& grid, const std::string& why) {
  throw InvalidRequest("[vision] grid " + std::to_string(index) + " is " +
                       std::to_string(grid.frames) + " x " + std::to_string(grid.height) + " x " +
                       std::to_string(grid.width) + " patches; " + why);
}

void check_grid(const VisionSpec& spec, std::size_t index, const Grid& grid) {
  for (const std::int64_t size : {grid.frames, grid.height, grid.width}) {
    if (size < 1 || size > kMaxPatches) {
      refuse(index, grid, "1 to " + std::to_string(kMaxPatches) + " are needed");
    }
  }
  if (grid.height * grid.width > kMaxPatches) {
    refuse(index, grid, "a frame has at most " + std::to_string(kMaxPatches));
  }
  if (grid.height % spec.merge != 0 || grid.width % spec.merge != 0) {
    refuse(index, grid, "multiples of " + std::to_string(spec.merge) + " are needed");
  }
  const std::int64_t side = spec.positions.side;
  if (spec.positions.kind == PositionKind::table && (grid.height != side || grid.width != side)) {
    refuse(index, grid, "this tower takes " + std::to_string(side) + " x " + std::to_string(side));
  }
}

FullAttentionShape shape_of(const PreparedLayer& layer) {
  return {layer.shape.heads, layer.shape.kv_heads, layer.shape.head_dim, layer.query_scale};
}

// A layer whose keys are made by a packed matrix keeps them in 8 bits too.
bool in_8_bits(const PreparedLayer& layer) { return layer.k.quantized(); }

}  // namespace

struct VisionTower::Impl {
  Impl(VisionSpec given, const std::map<std::string, TensorView>& tensors, ThreadPool& pool)
      : spec(checked(std::move(given))),
        kernels(musespark::kernels()),
        model(prepare_vision(spec, tensors)),
        window(window_of(spec)),
        jobs(pool) {}

  std::int64_t scratch_bytes() const;
  void reserve();
  void carve(Carver* c);
  void embed(const float* patches);
  void attention(const PreparedLayer& layer);
  void mlp(const PreparedLayer& layer, const Norm& next, const Needs& next_needs);
  void head(const PreparedHead& head, const HeadSpec& head_spec, float* out);
  bool run(std::span<const Frame> frames, const float* patches, std::span<float* const> out,
           const std::function<bool()>& stopped);

  Residual residual() const { return {x, RowsBuffer::padded(spec.hidden), rows(), spec.hidden}; }
  Rows normed(const Needs& needs) const { return in.view(rows(), spec.hidden, needs, true); }
  std::int64_t rows() const { return plan.rows(); }
  std::int64_t members() const { return spec.merge * spec.merge; }
  std::int64_t tokens() const { return static_cast<std::int64_t>(plan.members.size()) / members(); }
  std::int64_t patches() const { return tokens() * members(); }
  std::span<const TextSpan> texts_of(const PreparedLayer& layer) const {
    return layer.shape.window > 0 ? plan.windows : plan.frames;
  }
  // Columns of a token before the head's products.
  std::int64_t merged_cols(const PreparedHead& head) const {
    return head.merge == Merge::average ? spec.hidden : spec.hidden * members();
  }

  const VisionSpec spec;
  const KernelTable& kernels;
  PreparedVision model;
  const std::int64_t window;
  Jobs jobs;

  // The batch under way.
  VisionPlan plan;
  AlignedBuffer buffer;
  RowsBuffer pixels, in, joined, inner, merged, between[2];
  float *x = nullptr, *qkv = nullptr, *delta = nullptr;
  std::uint8_t* packed = nullptr;
};

std::int64_t VisionTower::Impl::scratch_bytes() const {
  std::int64_t bytes = model.scratch_bytes(std::max(rows(), patches()));
  for (const PreparedLayer& layer : model.layers) {
    std::int64_t longest = 0;
    for (const TextSpan& span : texts_of(layer)) longest = std::max(longest, span.count);
    bytes =
        std::max(bytes, in_8_bits(layer) ? int8_attention_scratch_bytes(shape_of(layer), longest)
                                         : full_attention_scratch_bytes(shape_of(layer), longest));
  }
  const std::int64_t floats = merge_scratch_floats(spec.hidden, members());
  return std::max(bytes, floats * std::int64_t{sizeof(float)});
}

void VisionTower::Impl::carve(Carver* c) {
  std::int64_t qkv_cols = 0, joined_cols = 0, inner_cols = 0, merged_width = 0, widest = 0;
  std::int64_t packed_bytes = 0;
  for (const PreparedLayer& layer : model.layers) {
    qkv_cols = std::max(qkv_cols, layer.qkv_cols());
    joined_cols = std::max(joined_cols, layer.q_cols());
    inner_cols = std::max(inner_cols, layer.intermediate);
    if (!in_8_bits(layer)) continue;
    packed_bytes = std::max(packed_bytes, int8_attention_bytes(shape_of(layer), texts_of(layer)));
  }
  const auto size = [&](const PreparedHead& one) {
    merged_width = std::max(merged_width, merged_cols(one));
    widest = std::max(widest, one.widest);
  };
  size(model.head);
  for (const PreparedHead& tap : model.taps) size(tap);
  pixels = c->rows(patches(), spec.patch_dim, false, kForms);
  in = c->rows(rows(), spec.hidden, true, kForms);
  joined = c->rows(rows(), joined_cols, true, kForms);
  inner = c->rows(rows(), inner_cols, true, kForms);
  merged = c->rows(tokens(), merged_width, true, kForms);
  for (RowsBuffer& room : between) room = c->rows(tokens(), widest, true, kForms);
  x = c->floats(rows(), spec.hidden);
  qkv = c->floats(rows(), qkv_cols);
  delta = c->floats(std::max(rows(), patches()), spec.hidden);
  packed = c->take<std::uint8_t>(packed_bytes);
}

void VisionTower::Impl::reserve() {
  jobs.reserve_scratch(scratch_bytes());
  carve_from(buffer, [&](Carver* c) { carve(c); });
  if (!model.rope) return;
  std::int32_t farthest = 0;
  for (const auto* places : {&plan.y, &plan.x}) {
    farthest = std::max(farthest, *std::max_element(places->begin(), places->end()));
  }
  model.rope->extend(farthest + spec.rope.first + 1);
}

void VisionTower::Impl::embed(const float* patches_in) {
  Rows from = pixels.view(patches(), spec.patch_dim, model.patch_needs, false);
  // The caller's floats: read, never written.
  from.x = const_cast<float*>(patches_in);
  from.ldx = spec.patch_dim;
  quantize_rows(jobs, kernels, from);
  const std::int64_t ld = RowsBuffer::padded(spec.hidden);
  const LinearOutput embedded{&from, &model.patch, delta, ld};
  linear(jobs, kernels, std::span(&embedded, 1));
  const PatchPlaces places{delta,           ld,         model.class_token, plan.patch,
                           model.positions, plan.share, plan.share_end};
  const PreparedLayer& first = model.layers[0];
  place_patches(jobs, kernels, places, residual(), model.embed_norm, first.attn_norm,
                normed(first.attn_needs));
}

void VisionTower::Impl::attention(const PreparedLayer& layer) {
  const std::int64_t ld = RowsBuffer::padded(layer.qkv_cols());
  const Rows from = normed(layer.attn_needs);
  float* k = qkv + layer.q_cols();
  const std::array<LinearOutput, 3> outputs = {
      LinearOutput{&from, &layer.q, qkv, ld}, LinearOutput{&from, &layer.k, k, ld},
      LinearOutput{&from, &layer.v, k + layer.k_cols(), ld}};
  linear(jobs, kernels, outputs);
  if (layer.rope >= 0) {
    const bool columns_first = spec.rope.columns_first;
    const AxialPlaces places{&*model.rope, columns_first ? plan.x : plan.y,
                             columns_first ? plan.y : plan.x, spec.rope.first};
    axial_rope(jobs, kernels, places, 2 * layer.shape.heads, layer.shape.head_dim, qkv, ld);
  }
  const Rows heads = joined.view(rows(), layer.q_cols(), layer.o_needs, true);
  if (in_8_bits(layer)) {
    int8_attention(jobs, kernels, shape_of(layer), texts_of(layer), qkv, ld, packed, heads);
  } else {
    full_attention(jobs, kernels, shape_of(layer), texts_of(layer), qkv, ld, heads);
  }
  const LinearOutput out{&heads, &layer.o, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_attn_norm, layer.attn_join, layer.mlp_norm,
           normed(layer.mlp_needs));
}

void VisionTower::Impl::mlp(const PreparedLayer& layer, const Norm& next, const Needs& next_needs) {
  const Rows from = normed(layer.mlp_needs);
  const Rows hidden = inner.view(rows(), layer.intermediate, layer.down_needs, false);
  const GatedOutput up{&from, layer.mlp.gate_or_null(), &layer.mlp.up, hidden};
  gated_linear(jobs, kernels, layer.gating, std::span(&up, 1));
  const LinearOutput out{&hidden, &layer.mlp.down, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_mlp_norm, layer.mlp_join, next,
           normed(next_needs));
}

void VisionTower::Impl::head(const PreparedHead& head, const HeadSpec& head_spec, float* out) {
  const TokenRows rows_in{x,           RowsBuffer::padded(spec.hidden),
                          spec.hidden, plan.members,
                          members(),   head.merge,
                          head.norm,   head.merged_norm};
  Rows from = merged.view(tokens(), merged_cols(head), head.needs(0), true);
  merge_rows(jobs, kernels, rows_in, from);
  for (std::size_t i = 0; i + 1 < head.products.size(); ++i) {
    const Rows to = between[i % 2].view(tokens(), head_spec.widths[i], head.needs(i + 1), false);
    const GatedOutput product{&from, nullptr, &head.products[i], to};
    gated_linear(jobs, kernels, head.gating, std::span(&product, 1));
    from = to;
  }
  const std::int64_t width = head_spec.widths.back();
  const LinearOutput last{&from, &head.products.back(), out, width};
  linear(jobs, kernels, std::span(&last, 1));
  if (head.out_norm.kind == Norm::Kind::none) return;
  norm_rows(jobs, kernels, out, width, head.out_norm,
            Rows{tokens(), width, out, width, {}, {}, {}});
}

bool VisionTower::Impl::run(std::span<const Frame> frames, const float* patches_in,
                            std::span<float* const> out, const std::function<bool()>& stopped) {
  plan = plan_frames(spec, window, frames);
  reserve();
  embed(patches_in);
  std::size_t tap = 0;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    if (stopped && stopped()) return false;
    const bool last = i + 1 == model.layers.size();
    attention(model.layers[i]);
    mlp(model.layers[i], last ? Norm{} : model.layers[i + 1].attn_norm,
        last ? Needs{} : model.layers[i + 1].attn_needs);
    if (tap < spec.taps.size() && spec.taps[tap].layer == static_cast<std::int64_t>(i)) {
      head(model.taps[tap], spec.taps[tap].head, out[tap + 1]);
      ++tap;
    }
  }
  head(model.head, spec.head, out[0]);
  return true;
}

VisionTower::VisionTower(VisionSpec spec, const std::map<std::string, TensorView>& tensors,
                         ThreadPool& pool)
    : impl_(std::make_unique<Impl>(std::move(spec), tensors, pool)) {}

VisionTower::~VisionTower() = default;

const VisionSpec& VisionTower::spec() const { return impl_->spec; }

std::int64_t VisionTower::tokens(std::span<const Grid> grids) const {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < grids.size(); ++i) {
    const Grid& grid = grids[i];
    check_grid(impl_->spec, i, grid);
    const std::int64_t each = grid.height * grid.width / impl_->members();
    total = checked_add<InvalidRequest>(
        total, checked_mul<InvalidRequest>(grid.frames, each, "[vision] tokens"),
        "[vision] tokens");
  }
  return total;
}

bool VisionTower::encode(std::span<const Grid> grids, const float* patches,
                         std::span<float* const> out, const std::function<bool()>& stopped) {
  Impl& m = *impl_;
  const FloatEnv environment;
  if (out.size() != 1 + m.spec.taps.size()) {
    throw InvalidRequest("[vision] " + std::to_string(out.size()) + " outputs; the tower gives " +
                         std::to_string(1 + m.spec.taps.size()));
  }
  tokens(grids);  // checks them
  std::vector<Frame> frames;
  for (const Grid& grid : grids) {
    frames.insert(frames.end(), static_cast<std::size_t>(grid.frames), {grid.height, grid.width});
  }
  std::vector<float*> to(out.begin(), out.end());
  for (std::size_t begin = 0, end = 0; begin < frames.size(); begin = end) {
    std::int64_t count = 0, shares = 0;
    do {
      count += frames[end].patches();
      shares += most_shares(m.spec.positions, frames[end++]);
    } while (end < frames.size() && count + frames[end].patches() <= kBatchRows &&
             shares + most_shares(m.spec.positions, frames[end]) <= kBatchShares);
    if (!m.run(std::span(frames).subspan(begin, end - begin), patches, to, stopped)) return false;
    patches += count * m.spec.patch_dim;
    for (float*& at : to) at += count / m.members() * m.spec.head.widths.back();
  }
  return true;
}

}  // namespace musespark

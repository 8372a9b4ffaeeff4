#include "model/vision_prepared.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;  // of any one dimension
constexpr std::int64_t kMaxSide = 1024;                   // of a window, a merge or the table

[[noreturn]] void refuse(const std::string& field, const std::string& value,
                         const std::string& allowed) {
  throw UnsupportedModel("vision spec: " + field + " is " + value + "; " + allowed);
}

void check_range(const std::string& field, std::int64_t value, std::int64_t low,
                 std::int64_t high) {
  if (value >= low && value <= high) return;
  refuse(field, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
}

void check_vision_layer(const VisionSpec& spec, std::size_t index) {
  const LayerSpec& layer = spec.layers[index];
  const AttentionSpec& a = layer.attention;
  const std::string field = "layers[" + std::to_string(index) + "]";
  RopeSpec rope;
  rope.dim = a.head_dim;
  check_layer(field, layer, std::span(&rope, spec.rope.on ? 1 : 0));
  const auto lacks = [&](const char* what) {
    throw UnsupportedModel("vision spec: " + field + what + " is not supported in a vision tower");
  };
  if (a.query_scale < 0)
    refuse(field + ".attention.query_scale", std::to_string(a.query_scale), "zero or more");
  if (a.kv_heads != a.heads) lacks(".attention.kv_heads below heads");
  if (a.softcap != 0) lacks(".attention.softcap");
  if (a.sinks) lacks(".attention.sinks");
  if (a.output_gate) lacks(".attention.output_gate");
  for (const NormSpec* norm : {&a.q_norm, &a.k_norm, &a.out_norm}) {
    if (norm->kind != NormKind::none) lacks(".attention: a norm of heads");
  }
  if (layer.mlp.kind != MlpKind::dense) lacks(".mlp.kind");
  if (a.window != 0) {
    check_range(field + ".attention.window", a.window, 1, kMaxSide);
    if (a.window != window_of(spec)) {
      refuse(field + ".attention.window", std::to_string(a.window),
             "windows are of one size, " + std::to_string(window_of(spec)));
    }
    if (spec.class_token) lacks(".attention.window beside a class token");
  }
  // Quarters of the rotated floats turn with the row and the column.
  if (a.rope >= 0 && a.head_dim % 4 != 0) {
    refuse(field + ".attention.head_dim", std::to_string(a.head_dim),
           "a multiple of 4 with an axial rope");
  }
  if (a.rope >= 0 && a.head_dim != spec.layers[0].attention.head_dim) {
    refuse(field + ".attention.head_dim", std::to_string(a.head_dim),
           "the same in all layers with a rope");
  }
}

void check_head(const std::string& field, const HeadSpec& head) {
  if (head.widths.empty()) throw UnsupportedModel("vision spec: " + field + ".widths is empty");
  for (const std::int64_t width : head.widths) check_range(field + ".widths", width, 1, kMaxSize);
  if (head.merge > Merge::average) {
    refuse(field + ".merge", std::to_string(static_cast<int>(head.merge)), "no such merge");
  }
  if (head.activation > Activation::quick_gelu) {
    refuse(field + ".activation", std::to_string(static_cast<int>(head.activation)),
           "no such activation");
  }
  check_norm(field + ".norm", head.norm);
  check_norm(field + ".merged_norm", head.merged_norm);
  check_norm(field + ".out_norm", head.out_norm);
}

void check_positions(const VisionSpec& spec) {
  const PositionSpec& p = spec.positions;
  if (p.kind > PositionKind::bilinear_area) {
    refuse("positions.kind", std::to_string(static_cast<int>(p.kind)), "no such kind");
  }
  if (p.kind == PositionKind::none) {
    if (p.side != 0) refuse("positions.side", std::to_string(p.side), "0 without a table");
    if (spec.class_token) {
      throw UnsupportedModel("vision spec: class_token without positions is not supported");
    }
    return;
  }
  check_range("positions.side", p.side, 1, kMaxSide);
  if (p.turned && spec.order != PatchOrder::raster) {
    throw UnsupportedModel("vision spec: positions.turned is for patches in raster order");
  }
}

PreparedHead load_head(TensorLoader& load, const std::string& prefix, const HeadSpec& from,
                       const VisionSpec& spec) {
  PreparedHead head;
  const std::int64_t members = from.merge == Merge::average ? 1 : spec.merge * spec.merge;
  std::int64_t width = spec.hidden * members;
  head.merge = from.merge;
  head.norm = load.norm(prefix + "norm", from.norm, spec.hidden);
  head.merged_norm = load.norm(prefix + "merged_norm", from.merged_norm, width);
  head.out_norm = load.norm(prefix + "out_norm", from.out_norm, from.widths.back());
  head.gating.activation = from.activation;
  for (std::size_t i = 0; i < from.widths.size(); ++i) {
    head.products.push_back(
        load.biased(prefix + std::to_string(i), from.widths[i], width, from.bias));
    width = from.widths[i];
    if (i + 1 < from.widths.size()) head.widest = std::max(head.widest, width);
  }
  return head;
}

// The table as plain rows: a row is the sum of several, so it is read often.
const float* load_positions(TensorLoader& load, const VisionSpec& spec) {
  const std::int64_t rows = spec.positions.side * spec.positions.side + (spec.class_token ? 1 : 0);
  const Matrix stored = load.matrix("positions", rows, spec.hidden);
  float* plain = load.made("positions plain", rows * spec.hidden);
  for (std::int64_t row = 0; row < rows; ++row) {
    decode_row(stored.packed, row, plain + row * spec.hidden);
  }
  return plain;
}

}  // namespace

std::int64_t window_of(const VisionSpec& spec) {
  for (const LayerSpec& layer : spec.layers) {
    if (layer.attention.window != 0) return layer.attention.window;
  }
  return 0;
}

void check_spec(const VisionSpec& spec) {
  check_range("patch_dim", spec.patch_dim, 1, kMaxSize);
  check_range("hidden", spec.hidden, 1, kMaxSize);
  check_range("merge", spec.merge, 1, 64);
  if (spec.order > PatchOrder::blocks) {
    refuse("order", std::to_string(static_cast<int>(spec.order)), "no such order");
  }
  check_positions(spec);
  check_norm("embed_norm", spec.embed_norm);
  if (!std::isfinite(spec.rope.theta) || spec.rope.theta < 1.0) {
    refuse("rope.theta", std::to_string(spec.rope.theta), "a finite number, at least 1");
  }
  check_range("rope.first", spec.rope.first, 0, 1);
  if (spec.layers.empty()) throw UnsupportedModel("vision spec: layers is empty");
  for (std::size_t i = 0; i < spec.layers.size(); ++i) check_vision_layer(spec, i);
  check_head("head", spec.head);
  const auto layers = static_cast<std::int64_t>(spec.layers.size());
  std::int64_t least = 0;
  for (std::size_t i = 0; i < spec.taps.size(); ++i) {
    const std::string field = "taps[" + std::to_string(i) + "]";
    check_range(field + ".layer", spec.taps[i].layer, least, layers - 1);
    least = spec.taps[i].layer + 1;
    check_head(field + ".head", spec.taps[i].head);
    if (spec.taps[i].head.widths.back() != spec.head.widths.back()) {
      refuse(field + ".head.widths", std::to_string(spec.taps[i].head.widths.back()),
             "the last is as wide as the head's, " + std::to_string(spec.head.widths.back()));
    }
  }
}

PreparedVision prepare_vision(const VisionSpec& spec,
                              const std::map<std::string, TensorView>& tensors) {
  PreparedVision model;
  TensorLoader load(tensors, &model);
  model.patch = load.biased("patch", spec.hidden, spec.patch_dim, spec.patch_bias);
  model.patch_needs.add(model.patch);
  if (spec.class_token) model.class_token = load.vector("class_token", spec.hidden);
  if (spec.positions.kind != PositionKind::none) model.positions = load_positions(load, spec);
  model.embed_norm = load.norm("embed_norm", spec.embed_norm, spec.hidden);
  RopeSpec axis;
  axis.dim = spec.layers[0].attention.head_dim / 2;
  axis.theta = spec.rope.theta;
  if (spec.rope.on) model.rope = make_rope(axis, false);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    model.layers.push_back(prepare_layer(load, prefix, spec.layers[i], spec.hidden,
                                         std::span(&axis, spec.rope.on ? 1 : 0)));
  }
  model.head = load_head(load, "head.", spec.head, spec);
  for (std::size_t i = 0; i < spec.taps.size(); ++i) {
    model.taps.push_back(
        load_head(load, "taps." + std::to_string(i) + ".", spec.taps[i].head, spec));
  }
  load.check_all_used();
  return model;
}

}  // namespace musespark

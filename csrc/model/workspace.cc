#include "model/workspace.h"

#include <algorithm>

#include "ops/experts.h"

namespace musespark {
namespace {

ExpertsSizes experts_sizes(const MlpSpec& mlp, std::int64_t hidden) {
  return {.experts = mlp.experts,
          .chosen = mlp.experts_per_token,
          .hidden = hidden,
          .width = mlp.expert_width > 0 ? mlp.expert_width : hidden,
          .intermediate = mlp.intermediate,
          .shared_intermediate = mlp.shared_intermediate,
          .pooled = mlp.expert_width > 0};
}

}  // namespace

StepWidths step_widths(const ModelSpec& spec) {
  StepWidths w{.hidden = spec.hidden};
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    const std::int64_t q = a.heads * a.head_dim;
    const bool dense = layer.mlp.kind == MlpKind::dense;
    w.qkv = std::max(w.qkv, q + 2 * a.kv_heads * a.head_dim);
    if (a.output_gate) w.gate = std::max(w.gate, q);
    w.heads = std::max(w.heads, a.heads * RowsBuffer::padded(a.head_dim));
    w.joined = std::max(w.joined, q);
    if (dense) w.hidden_mlp = std::max(w.hidden_mlp, layer.mlp.intermediate);
  }
  return w;
}

std::int64_t step_bytes(const ModelSpec& spec, std::int64_t rows) {
  std::int64_t experts = 0;
  for (const LayerSpec& layer : spec.layers) {
    if (layer.mlp.kind != MlpKind::experts) continue;
    experts =
        std::max(experts, ExpertsRunner::bytes_for(experts_sizes(layer.mlp, spec.hidden), rows));
  }
  return Workspace::bytes_for(step_widths(spec), rows) + experts;
}

}  // namespace musespark

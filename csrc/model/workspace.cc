#include "model/workspace.h"

#include <algorithm>

namespace musespark {
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

}  // namespace musespark

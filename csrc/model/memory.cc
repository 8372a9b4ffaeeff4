#include "model/memory.h"

#include <algorithm>

#include "base/checked.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/rope.h"

namespace musespark {
namespace {

ExpertsSizes experts_sizes(const MlpSpec& mlp, std::int64_t hidden, int forms) {
  return {.experts = mlp.experts,
          .chosen = mlp.experts_per_token,
          .hidden = hidden,
          .width = mlp.expert_width > 0 ? mlp.expert_width : hidden,
          .intermediate = mlp.intermediate,
          .shared_intermediate = mlp.shared_intermediate,
          .pooled = mlp.expert_width > 0,
          .forms = forms};
}

std::int64_t activation_bytes(const ModelSpec& spec, const StepSizes& sizes) {
  std::int64_t experts = 0;
  for (const LayerSpec& layer : spec.layers) {
    if (layer.mlp.kind != MlpKind::experts) continue;
    const ExpertsSizes of_layer = experts_sizes(layer.mlp, spec.hidden, sizes.forms);
    experts = std::max(experts, ExpertsRunner::bytes_for(of_layer, sizes.rows));
  }
  StepWidths widths = step_widths(spec);
  widths.mlp_floats = sizes.floats;
  widths.forms = sizes.forms;
  return Workspace::bytes_for(widths, sizes.rows) + experts;
}

// Of a thread: the most that a matrix or attention asks for.
std::int64_t scratch_bytes(const ModelSpec& spec, const StepSizes& sizes) {
  const WeightFormat format = sizes.floats ? WeightFormat::f32 : WeightFormat::q8;
  std::int64_t bytes = 0;
  const auto matrix = [&](std::int64_t cols) {
    if (cols > 0) bytes = std::max(bytes, gated_scratch_bytes(format, cols, sizes.rows));
  };
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    matrix(spec.hidden);
    matrix(a.heads * a.head_dim);
    matrix(layer.mlp.intermediate);
    matrix(layer.mlp.shared_intermediate);
    matrix(layer.mlp.expert_width);
    AttentionShape shape{};
    shape.heads = a.heads;
    shape.kv_heads = a.kv_heads;
    shape.padded_dim = RowsBuffer::padded(a.head_dim);
    bytes = std::max(bytes, attend_scratch_bytes(shape));
  }
  return bytes;
}

std::int64_t rope_bytes(const ModelSpec& spec, std::int64_t tokens) {
  const std::int64_t positions =
      checked_round_up<InvalidRequest, std::int64_t>(tokens, RopeTable::kBlock, "tokens");
  std::int64_t bytes = 0;
  for (const RopeSpec& rope : spec.ropes) {
    // The short factors of a longrope have a table of their own, up to their context.
    const std::int64_t shorter =
        rope.short_factors.empty() ? 0 : std::min(positions, rope.original_context);
    bytes += (positions + shorter) * rope.dim * static_cast<std::int64_t>(sizeof(float));
  }
  return bytes;
}

}  // namespace

StepMemory step_memory(const ModelSpec& spec, const StepSizes& sizes) {
  return {.activations = activation_bytes(spec, sizes),
          .scratch = sizes.threads * scratch_bytes(spec, sizes),
          .ropes = rope_bytes(spec, sizes.tokens),
          .logits = checked_mul(sizes.sequences * static_cast<std::int64_t>(sizeof(float)),
                                spec.vocab, "logits")};
}

}  // namespace musespark

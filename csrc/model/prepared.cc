#include "model/prepared.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "base/errors.h"
#include "base/math64.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

void load_attention(TensorLoader& load, const std::string& prefix, const AttentionSpec& spec,
                    std::int64_t hidden, PreparedLayer* layer) {
  const std::int64_t d = spec.head_dim;
  layer->shape = {true,         spec.heads, spec.kv_heads, d, (d + 15) / 16 * 16, spec.window,
                  spec.softcap, {}};
  layer->q = load.biased(prefix + "q", spec.heads * d, hidden, spec.qkv_bias);
  layer->k = load.biased(prefix + "k", spec.kv_heads * d, hidden, spec.qkv_bias);
  layer->v = load.biased(prefix + "v", spec.kv_heads * d, hidden, spec.qkv_bias);
  layer->o = load.biased(prefix + "o", hidden, spec.heads * d, spec.o_bias);
  layer->attn_needs.add(layer->q);
  layer->attn_needs.add(layer->k);
  layer->attn_needs.add(layer->v);
  if (spec.output_gate) {
    layer->attn_gate = load.matrix(prefix + "attn_gate", spec.heads * d, hidden);
    layer->attn_needs.add(layer->attn_gate);
  }
  layer->o_needs.add(layer->o);
  const std::int64_t q_width = spec.joint_qk_norm ? spec.heads * d : d;
  const std::int64_t k_width = spec.joint_qk_norm ? spec.kv_heads * d : d;
  (spec.joint_qk_norm ? layer->joint_q_norm : layer->q_norm) =
      load.norm(prefix + "q_norm", spec.q_norm, q_width);
  (spec.joint_qk_norm ? layer->joint_k_norm : layer->k_norm) =
      load.norm(prefix + "k_norm", spec.k_norm, k_width);
  layer->out_norm = load.norm(prefix + "out_norm", spec.out_norm, d);
  layer->sinks = spec.sinks ? load.vector(prefix + "sinks", spec.heads) : nullptr;
  layer->rope = spec.rope;
  layer->query_scale = spec.query_scale;
}

// `prefix` before gate, up and down; in_needs and down_needs are added to.
Expert load_expert(TensorLoader& load, const std::string& prefix, const MlpSpec& spec,
                   std::int64_t width, std::int64_t intermediate, Needs* in_needs,
                   Needs* down_needs) {
  Expert out;
  if (spec.gated) {
    out.gate = load.biased(prefix + "gate", intermediate, width, spec.bias);
    in_needs->add(out.gate);
  }
  out.up = load.biased(prefix + "up", intermediate, width, spec.bias);
  in_needs->add(out.up);
  out.down = load.biased(prefix + "down", width, intermediate, spec.bias);
  down_needs->add(out.down);
  return out;
}

Router load_router(TensorLoader& load, const std::string& prefix, const MlpSpec& spec,
                   std::int64_t hidden) {
  Router out;
  out.matrix = load.biased(prefix + "router", spec.experts, hidden, spec.router_bias);
  if (out.matrix.quantized()) {
    throw CorruptFile("tensor '" + prefix + "router' is " +
                      weight_format_name(out.matrix.packed.format) + "; routers are f32 or bf16");
  }
  if (spec.router_correction) {
    out.correction = load.vector(prefix + "router_correction", spec.experts);
  }
  out.scores = static_cast<Router::Scores>(spec.router);
  out.renormalize = spec.router_renormalize;
  out.scale = spec.router_scale;
  out.routed_scale = spec.routed_scale;
  out.chosen = spec.experts_per_token;
  return out;
}
static_assert(static_cast<int>(RouterKind::sigmoid) == static_cast<int>(Router::Scores::sigmoid));

// x_needs: forms of the layer's input, added to.
Experts load_experts(TensorLoader& load, const std::string& prefix, const MlpSpec& spec,
                     std::int64_t hidden, Needs* x_needs) {
  Experts out;
  out.router = load_router(load, prefix, spec, hidden);
  out.gating = {spec.activation, spec.swiglu_limit, spec.swiglu_alpha};
  out.hidden = hidden;
  out.width = spec.expert_width > 0 ? spec.expert_width : hidden;
  out.intermediate = spec.intermediate;
  if (spec.expert_width > 0) {
    out.in = load.matrix(prefix + "expert_in", out.width, hidden);
    out.in_norm = load.norm(prefix + "expert_in_norm", spec.expert_in_norm, out.width);
    out.out = load.matrix(prefix + "expert_out", hidden, out.width);
    out.out_needs.add(out.out);
    x_needs->add(out.in);
  }
  out.out_norm = load.norm(prefix + "expert_out_norm", spec.expert_out_norm, out.width);
  for (std::int64_t e = 0; e < spec.experts; ++e) {
    out.list.push_back(load_expert(load, prefix + "experts." + std::to_string(e) + ".", spec,
                                   out.width, spec.intermediate, &out.in_needs, &out.down_needs));
  }
  if (spec.shared_intermediate > 0) {
    out.shared_intermediate = spec.shared_intermediate;
    out.shared = load_expert(load, prefix + "shared_", spec, hidden, spec.shared_intermediate,
                             x_needs, &out.down_needs);
    if (spec.shared_router) out.shared_router = load.vector(prefix + "shared_router", hidden);
  }
  x_needs->add(out.router.matrix);
  if (out.shared_router) x_needs->floats = true;
  if (!out.pooled()) {
    x_needs->add(out.in_needs);
  }
  return out;
}

void load_mlp(TensorLoader& load, const std::string& prefix, const MlpSpec& spec,
              std::int64_t hidden, PreparedLayer* layer) {
  if (spec.kind == MlpKind::experts) {
    layer->experts = load_experts(load, prefix, spec, hidden, &layer->mlp_needs);
    return;
  }
  layer->gating = {spec.activation, spec.swiglu_limit, spec.swiglu_alpha};
  layer->intermediate = spec.intermediate;
  layer->mlp = load_expert(load, prefix, spec, hidden, spec.intermediate, &layer->mlp_needs,
                           &layer->down_needs);
}

// The gate of a residual sum, folded: w = gate / temperature; beta = sigmoid(w), alpha =
// sqrt(max(sigmoid(-w) * (1 + beta), 1e-3)), in float64, rounded once.
Join load_join(TensorLoader& load, const std::string& name, const LayerSpec& spec,
               std::int64_t hidden) {
  Join join;
  join.scale = spec.residual_scale;
  if (!spec.residual_gates) return join;
  const float* gate = load.vector(name, hidden);
  float* alpha = load.made(name + " alpha", hidden);
  float* beta = load.made(name + " beta", hidden);
  for (std::int64_t i = 0; i < hidden; ++i) {
    const auto w = static_cast<double>(gate[i] / spec.residual_temperature);
    const double share = 1.0 / (1.0 + math64::exp(-w));
    const double rest = 1.0 / (1.0 + math64::exp(w));
    beta[i] = static_cast<float>(share);
    alpha[i] = static_cast<float>(std::sqrt(std::max(rest * (1.0 + share), 1e-3)));
  }
  join.alpha = alpha;
  join.beta = beta;
  return join;
}

static_assert(static_cast<int>(RopeScaling::factors) ==
              static_cast<int>(RopeFrequencies::Scaling::factors));

}  // namespace

PreparedLayer prepare_layer(TensorLoader& load, const std::string& prefix, const LayerSpec& from,
                            std::int64_t hidden, std::span<const RopeSpec> ropes) {
  PreparedLayer layer{};
  load_attention(load, prefix, from.attention, hidden, &layer);
  load_mlp(load, prefix, from.mlp, hidden, &layer);
  if (layer.rope >= 0) {
    layer.interleaved = ropes[static_cast<std::size_t>(layer.rope)].interleaved;
  }
  layer.attn_norm = load.norm(prefix + "attn_norm", from.attn_norm, hidden);
  layer.post_attn_norm = load.norm(prefix + "post_attn_norm", from.post_attn_norm, hidden);
  layer.mlp_norm = load.norm(prefix + "mlp_norm", from.mlp_norm, hidden);
  layer.post_mlp_norm = load.norm(prefix + "post_mlp_norm", from.post_mlp_norm, hidden);
  layer.attn_join = load_join(load, prefix + "attn_residual_gate", from, hidden);
  layer.mlp_join = load_join(load, prefix + "mlp_residual_gate", from, hidden);
  return layer;
}

RopeTable make_rope(const RopeSpec& spec, bool within_original) {
  const bool shorter = within_original && !spec.short_factors.empty();
  const RopeFrequencies frequencies{spec.dim,
                                    spec.theta,
                                    static_cast<RopeFrequencies::Scaling>(spec.scaling),
                                    spec.factor,
                                    spec.low_freq_factor,
                                    spec.high_freq_factor,
                                    spec.beta_fast,
                                    spec.beta_slow,
                                    spec.original_context,
                                    shorter ? spec.short_factors : spec.factors};
  return RopeTable(rope_inverse_frequencies(frequencies), static_cast<float>(spec.attention_factor),
                   spec.axes);
}

PreparedModel prepare_model(const ModelSpec& spec,
                            const std::map<std::string, TensorView>& tensors) {
  PreparedModel model;
  TensorLoader load(tensors, &model);
  const bool drafts = spec.block > 0;
  if (drafts) {
    const auto states = static_cast<std::int64_t>(spec.target_layers.size());
    model.context = load.matrix("context", spec.hidden, states * spec.hidden);
    model.context_needs.add(model.context);
    model.context_norm = load.norm("context_norm", spec.context_norm, spec.hidden);
  } else {
    model.embed = load.matrix("embed", spec.vocab, spec.hidden);
  }
  if (!spec.bidirectional && !drafts) {
    model.head = spec.tied_head ? model.embed : load.matrix("head", spec.vocab, spec.hidden);
    model.head_needs.add(model.head);
  }
  if (spec.positions > 0) model.positions = load.matrix("positions", spec.positions, spec.hidden);
  if (spec.token_types > 0) {
    model.token_types = load.matrix("token_types", spec.token_types, spec.hidden);
  }
  model.embed_norm = load.norm("embed_norm", spec.embed_norm, spec.hidden);
  model.final_norm = load.norm("final_norm", spec.final_norm, spec.hidden);
  for (const RopeSpec& rope : spec.ropes) {
    model.ropes.push_back(make_rope(rope, false));
    model.short_ropes.push_back(make_rope(rope, true));
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    model.layers.push_back(prepare_layer(load, prefix, spec.layers[i], spec.hidden, spec.ropes));
  }
  load.check_all_used();
  return model;
}

}  // namespace musespark

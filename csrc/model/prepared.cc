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

// Takes tensors out of the map by name and checks them against the spec's shapes.
class Loader {
 public:
  Loader(const std::map<std::string, TensorView>& tensors, PreparedModel* model)
      : tensors_(tensors), model_(model) {}

  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const TensorView& t = find(name, rows, cols);
    if (t.bytes < 0) throw CorruptFile("tensor '" + name + "': a negative size");
    model_->matrix_kinds.insert({t.format, cols});
    return {packed_matrix(t.format, rows, cols, t.data, static_cast<std::size_t>(t.bytes),
                          "tensor '" + name + "'"),
            nullptr};
  }

  // A copy of a vector, with `add` added to every element.
  const float* vector(const std::string& name, std::int64_t length, float add = 0.0f) {
    const TensorView& t = find(name, 1, length);
    const std::int64_t bytes = length * static_cast<std::int64_t>(sizeof(float));
    if (t.format != WeightFormat::f32) {
      throw CorruptFile("tensor '" + name + "': vectors are f32, not " +
                        weight_format_name(t.format));
    }
    if (t.bytes != bytes) {
      throw CorruptFile("tensor '" + name + "': " + std::to_string(t.bytes) + " bytes; " +
                        std::to_string(length) + " floats take " + std::to_string(bytes));
    }
    AlignedBuffer& own = model_->vectors[name];
    own = AlignedBuffer(static_cast<std::size_t>(bytes));
    std::memcpy(own.data(), t.data, own.size());
    if (add != 0.0f) {
      for (std::int64_t i = 0; i < length; ++i) own.as<float>()[i] += add;
    }
    return own.as<float>();
  }

  Matrix biased(const std::string& name, std::int64_t rows, std::int64_t cols, bool bias) {
    Matrix out = matrix(name, rows, cols);
    if (bias) out.bias = vector(name + "_bias", rows);
    return out;
  }

  // Room for a vector that is made here, under a name that no tensor has.
  float* made(const std::string& name, std::int64_t length) {
    AlignedBuffer& own = model_->vectors[name];
    own = AlignedBuffer(static_cast<std::size_t>(length) * sizeof(float));
    return own.as<float>();
  }

  // `weight` names the norm's weight; its bias is <weight>_bias.
  Norm norm(const std::string& weight, const NormSpec& spec, std::int64_t length) {
    Norm norm;
    norm.eps = spec.eps;
    switch (spec.kind) {
      case NormKind::none:
        return norm;
      case NormKind::rms_scaleless:
        norm.kind = Norm::Kind::rms;
        return norm;
      case NormKind::rms:
        norm.kind = Norm::Kind::rms;
        norm.weight = vector(weight, length);
        return norm;
      case NormKind::rms_centered:
        norm.kind = Norm::Kind::rms;
        norm.weight = vector(weight, length, 1.0f);
        return norm;
      case NormKind::rms_input_scaled:
        norm.kind = Norm::Kind::rms_input_scaled;
        norm.weight = vector(weight, length, 1.0f);
        return norm;
      case NormKind::layer:
        norm.kind = Norm::Kind::layer;
        norm.weight = vector(weight, length);
        if (spec.bias) norm.bias = vector(weight + "_bias", length);
        return norm;
    }
    return norm;
  }

  void check_all_used() const {
    for (const auto& [name, view] : tensors_) {
      if (!used_.contains(name)) {
        throw CorruptFile("tensor '" + name + "' (" + std::to_string(view.rows) + " x " +
                          std::to_string(view.cols) + ") is not one of this model's");
      }
    }
  }

 private:
  const TensorView& find(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) {
      throw CorruptFile("tensor '" + name + "' (" + std::to_string(rows) + " x " +
                        std::to_string(cols) + ") is missing");
    }
    if (at->second.rows != rows || at->second.cols != cols) {
      throw CorruptFile("tensor '" + name + "' is " + std::to_string(at->second.rows) + " x " +
                        std::to_string(at->second.cols) + "; the model needs " +
                        std::to_string(rows) + " x " + std::to_string(cols));
    }
    used_.insert(name);
    return at->second;
  }

  const std::map<std::string, TensorView>& tensors_;
  PreparedModel* model_;
  std::set<std::string> used_;
};

void load_attention(Loader& load, const std::string& prefix, const AttentionSpec& spec,
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
Expert load_expert(Loader& load, const std::string& prefix, const MlpSpec& spec, std::int64_t width,
                   std::int64_t intermediate, Needs* in_needs, Needs* down_needs) {
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

Router load_router(Loader& load, const std::string& prefix, const MlpSpec& spec,
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
Experts load_experts(Loader& load, const std::string& prefix, const MlpSpec& spec,
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

void load_mlp(Loader& load, const std::string& prefix, const MlpSpec& spec, std::int64_t hidden,
              PreparedLayer* layer) {
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
Join load_join(Loader& load, const std::string& name, const LayerSpec& spec, std::int64_t hidden) {
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

PreparedLayer load_layer(Loader& load, const std::string& prefix, const LayerSpec& from,
                         const ModelSpec& spec) {
  PreparedLayer layer{};
  load_attention(load, prefix, from.attention, spec.hidden, &layer);
  load_mlp(load, prefix, from.mlp, spec.hidden, &layer);
  if (layer.rope >= 0) {
    layer.interleaved = spec.ropes[static_cast<std::size_t>(layer.rope)].interleaved;
  }
  layer.attn_norm = load.norm(prefix + "attn_norm", from.attn_norm, spec.hidden);
  layer.post_attn_norm = load.norm(prefix + "post_attn_norm", from.post_attn_norm, spec.hidden);
  layer.mlp_norm = load.norm(prefix + "mlp_norm", from.mlp_norm, spec.hidden);
  layer.post_mlp_norm = load.norm(prefix + "post_mlp_norm", from.post_mlp_norm, spec.hidden);
  layer.attn_join = load_join(load, prefix + "attn_residual_gate", from, spec.hidden);
  layer.mlp_join = load_join(load, prefix + "mlp_residual_gate", from, spec.hidden);
  return layer;
}

static_assert(static_cast<int>(RopeScaling::factors) ==
              static_cast<int>(RopeFrequencies::Scaling::factors));

}  // namespace

std::int64_t PreparedModel::scratch_bytes(std::int64_t rows) const {
  std::int64_t bytes = 0;
  for (const auto& [format, cols] : matrix_kinds) {
    bytes = std::max(bytes, gated_scratch_bytes(format, cols, rows));
  }
  return bytes;
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
  return RopeTable(rope_inverse_frequencies(frequencies),
                   static_cast<float>(spec.attention_factor));
}

PreparedModel prepare_model(const ModelSpec& spec,
                            const std::map<std::string, TensorView>& tensors) {
  PreparedModel model;
  Loader load(tensors, &model);
  model.embed = load.matrix("embed", spec.vocab, spec.hidden);
  if (!spec.bidirectional) {
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
    model.layers.push_back(load_layer(load, prefix, spec.layers[i], spec));
  }
  load.check_all_used();
  return model;
}

}  // namespace musespark

#include "model/prepared.h"

#include <cstring>
#include <set>
#include <utility>

#include "base/errors.h"
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
                    std::int64_t hidden, KvFormat kv, PreparedLayer* layer) {
  const std::int64_t d = spec.head_dim;
  layer->shape = {kv,           spec.heads, spec.kv_heads, d, (d + 15) / 16 * 16, spec.window,
                  spec.softcap, {}};
  layer->q = load.matrix(prefix + "q", spec.heads * d, hidden);
  layer->k = load.matrix(prefix + "k", spec.kv_heads * d, hidden);
  layer->v = load.matrix(prefix + "v", spec.kv_heads * d, hidden);
  layer->o = load.matrix(prefix + "o", hidden, spec.heads * d);
  if (spec.qkv_bias) {
    layer->q.bias = load.vector(prefix + "q_bias", spec.heads * d);
    layer->k.bias = load.vector(prefix + "k_bias", spec.kv_heads * d);
    layer->v.bias = load.vector(prefix + "v_bias", spec.kv_heads * d);
  }
  if (spec.o_bias) layer->o.bias = load.vector(prefix + "o_bias", hidden);
  layer->attn_needs.add(layer->q);
  layer->attn_needs.add(layer->k);
  layer->attn_needs.add(layer->v);
  if (spec.output_gate) {
    layer->attn_gate = load.matrix(prefix + "attn_gate", spec.heads * d, hidden);
    layer->attn_needs.add(layer->attn_gate);
  }
  layer->o_needs.add(layer->o);
  layer->q_norm = load.norm(prefix + "q_norm", spec.q_norm, d);
  layer->k_norm = load.norm(prefix + "k_norm", spec.k_norm, d);
  layer->sinks = spec.sinks ? load.vector(prefix + "sinks", spec.heads) : nullptr;
  layer->rope = spec.rope;
  layer->query_scale = spec.query_scale;
}

void load_mlp(Loader& load, const std::string& prefix, const MlpSpec& spec, std::int64_t hidden,
              PreparedLayer* layer) {
  layer->activation = spec.activation;
  layer->intermediate = spec.intermediate;
  if (spec.gated) {
    layer->gate = load.matrix(prefix + "gate", spec.intermediate, hidden);
    layer->mlp_needs.add(layer->gate);
    if (spec.bias) layer->gate.bias = load.vector(prefix + "gate_bias", spec.intermediate);
  }
  layer->up = load.matrix(prefix + "up", spec.intermediate, hidden);
  layer->mlp_needs.add(layer->up);
  layer->down = load.matrix(prefix + "down", hidden, spec.intermediate);
  layer->down_needs.add(layer->down);
  if (spec.bias) {
    layer->up.bias = load.vector(prefix + "up_bias", spec.intermediate);
    layer->down.bias = load.vector(prefix + "down_bias", hidden);
  }
}

RopeTable make_rope(const RopeSpec& spec) {
  const RopeFrequencies frequencies{
      spec.dim,       spec.theta,           static_cast<RopeFrequencies::Scaling>(spec.scaling),
      spec.factor,    spec.low_freq_factor, spec.high_freq_factor,
      spec.beta_fast, spec.beta_slow,       spec.original_context};
  return RopeTable(rope_inverse_frequencies(frequencies),
                   static_cast<float>(spec.attention_factor));
}
static_assert(static_cast<int>(RopeScaling::yarn) ==
              static_cast<int>(RopeFrequencies::Scaling::yarn));

}  // namespace

PreparedModel prepare_model(const ModelSpec& spec, const std::map<std::string, TensorView>& tensors,
                            KvFormat kv) {
  PreparedModel model;
  Loader load(tensors, &model);
  model.embed = load.matrix("embed", spec.vocab, spec.hidden);
  model.head = spec.tied_head ? model.embed : load.matrix("head", spec.vocab, spec.hidden);
  model.head_needs.add(model.head);
  model.embed_norm = load.norm("embed_norm", spec.embed_norm, spec.hidden);
  model.final_norm = load.norm("final_norm", spec.final_norm, spec.hidden);
  for (const RopeSpec& rope : spec.ropes) model.ropes.push_back(make_rope(rope));
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& from = spec.layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    PreparedLayer layer{};
    load_attention(load, prefix, from.attention, spec.hidden, kv, &layer);
    load_mlp(load, prefix, from.mlp, spec.hidden, &layer);
    if (layer.rope >= 0) {
      layer.interleaved = spec.ropes[static_cast<std::size_t>(layer.rope)].interleaved;
    }
    layer.attn_norm = load.norm(prefix + "attn_norm", from.attn_norm, spec.hidden);
    layer.post_attn_norm = load.norm(prefix + "post_attn_norm", from.post_attn_norm, spec.hidden);
    layer.mlp_norm = load.norm(prefix + "mlp_norm", from.mlp_norm, spec.hidden);
    layer.post_mlp_norm = load.norm(prefix + "post_mlp_norm", from.post_mlp_norm, spec.hidden);
    model.layers.push_back(layer);
  }
  load.check_all_used();
  return model;
}

}  // namespace musespark

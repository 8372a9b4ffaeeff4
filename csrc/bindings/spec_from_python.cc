#include "spec_from_python.h"

#include "dict_reader.h"

namespace py = pybind11;

namespace musespark {
namespace {

NormSpec read_norm(DictReader d) {
  NormSpec out;
  out.kind = d.choice<NormKind>("kind", {{"none", NormKind::none},
                                         {"rms", NormKind::rms},
                                         {"rms_centered", NormKind::rms_centered},
                                         {"rms_scaleless", NormKind::rms_scaleless},
                                         {"rms_input_scaled", NormKind::rms_input_scaled},
                                         {"layer", NormKind::layer}});
  out.eps = static_cast<float>(d.real("eps"));
  out.bias = d.boolean("bias");
  d.finish();
  return out;
}

std::vector<float> read_floats(DictReader& d, const char* key) {
  std::vector<float> out;
  for (const py::handle one : d.list(key)) {
    const std::string path = d.path(key) + "[" + std::to_string(out.size()) + "]";
    out.push_back(static_cast<float>(to_real(one, path)));
  }
  return out;
}

RopeSpec read_rope(DictReader d) {
  RopeSpec out;
  out.dim = d.integer("dim");
  out.interleaved = d.boolean("interleaved");
  out.theta = d.real("theta");
  out.scaling = d.choice<RopeScaling>("scaling", {{"none", RopeScaling::none},
                                                  {"linear", RopeScaling::linear},
                                                  {"llama3", RopeScaling::llama3},
                                                  {"yarn", RopeScaling::yarn},
                                                  {"factors", RopeScaling::factors}});
  out.factor = d.real("factor");
  out.low_freq_factor = d.real("low_freq_factor");
  out.high_freq_factor = d.real("high_freq_factor");
  out.beta_fast = d.real("beta_fast");
  out.beta_slow = d.real("beta_slow");
  out.original_context = d.integer("original_context");
  out.attention_factor = d.real("attention_factor");
  out.factors = read_floats(d, "factors");
  out.short_factors = read_floats(d, "short_factors");
  for (const py::handle axis : d.list("axes")) {
    const std::int64_t value = to_integer(axis, d.path("axes"));
    if (value < 0 || value > 2) DictReader::fail(d.path("axes"), shown(axis), "0, 1 or 2");
    out.axes.push_back(static_cast<std::uint8_t>(value));
  }
  d.finish();
  return out;
}

AttentionSpec read_attention(DictReader d) {
  AttentionSpec out;
  out.heads = d.integer("heads");
  out.kv_heads = d.integer("kv_heads");
  out.head_dim = d.integer("head_dim");
  out.window = d.integer("window");
  out.rope = d.integer("rope");
  out.q_norm = read_norm(d.dict("q_norm"));
  out.k_norm = read_norm(d.dict("k_norm"));
  out.query_scale = static_cast<float>(d.real("query_scale"));
  out.softcap = static_cast<float>(d.real("softcap"));
  out.sinks = d.boolean("sinks");
  out.qkv_bias = d.boolean("qkv_bias");
  out.o_bias = d.boolean("o_bias");
  out.output_gate = d.boolean("output_gate");
  out.joint_qk_norm = d.boolean("joint_qk_norm");
  out.out_norm = read_norm(d.dict("out_norm"));
  d.finish();
  return out;
}

Activation read_activation(DictReader& d) {
  return d.choice<Activation>("activation", {{"silu", Activation::silu},
                                             {"gelu_tanh", Activation::gelu_tanh},
                                             {"gelu", Activation::gelu},
                                             {"relu", Activation::relu},
                                             {"relu2", Activation::relu2},
                                             {"quick_gelu", Activation::quick_gelu}});
}

MlpSpec read_mlp(DictReader d) {
  MlpSpec out;
  out.kind = d.choice<MlpKind>("kind", {{"dense", MlpKind::dense}, {"experts", MlpKind::experts}});
  out.activation = read_activation(d);
  out.gated = d.boolean("gated");
  out.bias = d.boolean("bias");
  out.intermediate = d.integer("intermediate");
  out.experts = d.integer("experts");
  out.experts_per_token = d.integer("experts_per_token");
  out.swiglu_limit = static_cast<float>(d.real("swiglu_limit"));
  out.swiglu_alpha = static_cast<float>(d.real("swiglu_alpha"));
  out.router = d.choice<RouterKind>("router", {{"softmax", RouterKind::softmax},
                                               {"softmax_chosen", RouterKind::softmax_chosen},
                                               {"sigmoid", RouterKind::sigmoid}});
  out.router_renormalize = d.boolean("router_renormalize");
  out.router_bias = d.boolean("router_bias");
  out.router_correction = d.boolean("router_correction");
  out.router_scale = static_cast<float>(d.real("router_scale"));
  out.routed_scale = static_cast<float>(d.real("routed_scale"));
  out.expert_width = d.integer("expert_width");
  out.expert_in_norm = read_norm(d.dict("expert_in_norm"));
  out.expert_out_norm = read_norm(d.dict("expert_out_norm"));
  out.shared_intermediate = d.integer("shared_intermediate");
  out.shared_router = d.boolean("shared_router");
  d.finish();
  return out;
}

LayerSpec read_layer(DictReader d) {
  LayerSpec out;
  out.attention = read_attention(d.dict("attention"));
  out.mlp = read_mlp(d.dict("mlp"));
  out.attn_norm = read_norm(d.dict("attn_norm"));
  out.post_attn_norm = read_norm(d.dict("post_attn_norm"));
  out.mlp_norm = read_norm(d.dict("mlp_norm"));
  out.post_mlp_norm = read_norm(d.dict("post_mlp_norm"));
  out.residual_gates = d.boolean("residual_gates");
  out.residual_temperature = static_cast<float>(d.real("residual_temperature"));
  out.residual_scale = static_cast<float>(d.real("residual_scale"));
  d.finish();
  return out;
}

std::string element(const DictReader& d, const char* key, std::size_t i) {
  return d.path(key) + "[" + std::to_string(i) + "]";
}

PositionSpec read_positions(DictReader d) {
  PositionSpec out;
  out.kind = d.choice<PositionKind>("kind", {{"none", PositionKind::none},
                                             {"table", PositionKind::table},
                                             {"buckets", PositionKind::buckets},
                                             {"bilinear_corners", PositionKind::bilinear_corners},
                                             {"bilinear_zeros", PositionKind::bilinear_zeros},
                                             {"bilinear_area", PositionKind::bilinear_area}});
  out.side = d.integer("side");
  out.turned = d.boolean("turned");
  d.finish();
  return out;
}

AxialRopeSpec read_axial_rope(DictReader d) {
  AxialRopeSpec out;
  out.on = d.boolean("on");
  out.theta = d.real("theta");
  out.columns_first = d.boolean("columns_first");
  out.first = d.integer("first");
  d.finish();
  return out;
}

HeadSpec read_head(DictReader d) {
  HeadSpec out;
  out.norm = read_norm(d.dict("norm"));
  out.merge = d.choice<Merge>(
      "merge",
      {{"concat", Merge::concat}, {"interleave", Merge::interleave}, {"average", Merge::average}});
  out.merged_norm = read_norm(d.dict("merged_norm"));
  for (const py::handle one : d.list("widths")) {
    out.widths.push_back(to_integer(one, element(d, "widths", out.widths.size())));
  }
  out.activation = read_activation(d);
  out.bias = d.boolean("bias");
  out.out_norm = read_norm(d.dict("out_norm"));
  d.finish();
  return out;
}

std::vector<LayerSpec> read_layers(DictReader& d) {
  std::vector<LayerSpec> out;
  for (const py::handle one : d.list("layers")) {
    out.push_back(read_layer(DictReader(one, element(d, "layers", out.size()))));
  }
  return out;
}

}  // namespace

ModelSpec spec_from_python(py::handle spec) {
  DictReader d(spec, "");
  ModelSpec out;
  out.vocab = d.integer("vocab");
  out.hidden = d.integer("hidden");
  out.max_context = d.integer("max_context");
  out.embed_scale = static_cast<float>(d.real("embed_scale"));
  out.embed_norm = read_norm(d.dict("embed_norm"));
  out.final_norm = read_norm(d.dict("final_norm"));
  out.tied_head = d.boolean("tied_head");
  out.logit_scale = static_cast<float>(d.real("logit_scale"));
  out.logit_softcap = static_cast<float>(d.real("logit_softcap"));
  const py::sequence ropes = d.list("ropes");
  for (std::size_t i = 0; i < ropes.size(); ++i) {
    out.ropes.push_back(read_rope(DictReader(ropes[i], element(d, "ropes", i))));
  }
  out.layers = read_layers(d);
  out.mutual_rows = d.boolean("mutual_rows");
  out.bidirectional = d.boolean("bidirectional");
  out.positions = d.integer("positions");
  out.token_types = d.integer("token_types");
  out.normed_residual = d.boolean("normed_residual");
  out.pooling = d.choice<Pooling>(
      "pooling", {{"none", Pooling::none}, {"mean", Pooling::mean}, {"cls", Pooling::cls}});
  out.normalize = d.boolean("normalize");
  out.block = d.integer("block");
  out.mask_token = d.integer("mask_token");
  for (const py::handle one : d.list("target_layers")) {
    out.target_layers.push_back(
        to_integer(one, element(d, "target_layers", out.target_layers.size())));
  }
  out.context_norm = read_norm(d.dict("context_norm"));
  d.finish();
  return out;
}

VisionSpec vision_spec_from_python(py::handle spec) {
  DictReader d(spec, "");
  VisionSpec out;
  out.patch_dim = d.integer("patch_dim");
  out.hidden = d.integer("hidden");
  out.merge = d.integer("merge");
  out.order = d.choice<PatchOrder>(
      "order", {{"raster", PatchOrder::raster}, {"blocks", PatchOrder::blocks}});
  out.patch_bias = d.boolean("patch_bias");
  out.class_token = d.boolean("class_token");
  out.positions = read_positions(d.dict("positions"));
  out.rope = read_axial_rope(d.dict("rope"));
  out.embed_norm = read_norm(d.dict("embed_norm"));
  out.layers = read_layers(d);
  out.head = read_head(d.dict("head"));
  for (const py::handle one : d.list("taps")) {
    DictReader tap(one, element(d, "taps", out.taps.size()));
    out.taps.push_back({tap.integer("layer"), read_head(tap.dict("head"))});
    tap.finish();
  }
  d.finish();
  return out;
}

}  // namespace musespark

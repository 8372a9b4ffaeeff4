// What a ModelSpec may say in this version.
#include <cmath>
#include <span>
#include <string>
#include <utility>

#include "base/errors.h"
#include "model/prepared.h"

namespace musespark {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 24;  // of any one dimension
constexpr std::int64_t kMaxHeadDim = 512;                 // kernels/rowwise: rotate
constexpr std::int64_t kMaxHeads = std::int64_t{1} << 12;
constexpr std::int64_t kMaxExperts = std::int64_t{1} << 16;
constexpr std::int64_t kMaxBlock = 64;

template <class T>
[[noreturn]] void refuse(const std::string& field, T value, const std::string& allowed) {
  throw UnsupportedModel("model spec: " + field + " is " + std::to_string(value) + "; " + allowed);
}

void check_size(const std::string& field, std::int64_t value) {
  if (value < 1 || value > kMaxSize) refuse(field, value, "1 to " + std::to_string(kMaxSize));
}

void check_number(const std::string& field, double value, double least, const char* allowed) {
  if (!std::isfinite(value) || value < least) refuse(field, value, allowed);
}

void check_factors(const std::string& field, const RopeSpec& rope) {
  const auto half = static_cast<std::size_t>(rope.dim / 2);
  if (rope.factors.size() != half) {
    refuse(field + ".factors", rope.factors.size(), std::to_string(half) + " numbers are needed");
  }
  if (!rope.short_factors.empty() && rope.short_factors.size() != half) {
    refuse(field + ".short_factors", rope.short_factors.size(),
           std::to_string(half) + " numbers or none are needed");
  }
  for (const auto* list : {&rope.factors, &rope.short_factors}) {
    for (const float factor : *list) {
      check_number(field + ".factors", factor, 1e-6, "finite numbers above 0 are needed");
    }
  }
}

void check_rope(const std::string& field, const RopeSpec& rope) {
  if (rope.dim < 2 || rope.dim % 2 != 0 || rope.dim > kMaxHeadDim) {
    refuse(field + ".dim", rope.dim, "an even number, 2 to " + std::to_string(kMaxHeadDim));
  }
  check_number(field + ".theta", rope.theta, 1.0, "a finite number, at least 1, is needed");
  check_number(field + ".factor", rope.factor, 1e-6, "a finite number above 0 is needed");
  check_number(field + ".attention_factor", rope.attention_factor, 0, "a finite number is needed");
  const bool stretched = rope.scaling == RopeScaling::llama3 || rope.scaling == RopeScaling::yarn;
  if (stretched && rope.original_context < 1) {
    refuse(field + ".original_context", rope.original_context, "at least 1 with this scaling");
  }
  if (rope.scaling == RopeScaling::llama3) {
    check_number(field + ".low_freq_factor", rope.low_freq_factor, 1e-6, "above 0 is needed");
    if (!(rope.high_freq_factor > rope.low_freq_factor)) {
      refuse(field + ".high_freq_factor", rope.high_freq_factor, "above low_freq_factor is needed");
    }
  }
  if (rope.scaling == RopeScaling::factors) check_factors(field, rope);
  if (!rope.axes.empty() && rope.axes.size() != static_cast<std::size_t>(rope.dim / 2)) {
    refuse(field + ".axes", rope.axes.size(),
           std::to_string(rope.dim / 2) + " axes or none are needed");
  }
  for (const std::uint8_t axis : rope.axes) {
    if (axis > 2) refuse(field + ".axes", static_cast<int>(axis), "0, 1 or 2 is needed");
  }
  if (rope.scaling == RopeScaling::yarn) {
    check_number(field + ".beta_fast", rope.beta_fast, 1e-6, "above 0 is needed");
    check_number(field + ".beta_slow", rope.beta_slow, 1e-6, "above 0 is needed");
    if (!(rope.theta > 1.0)) refuse(field + ".theta", rope.theta, "above 1 with yarn");
  }
}

void check_attention(const std::string& field, const AttentionSpec& a,
                     std::span<const RopeSpec> ropes) {
  check_size(field + ".heads", a.heads);
  check_size(field + ".kv_heads", a.kv_heads);
  if (a.heads > kMaxHeads) refuse(field + ".heads", a.heads, "1 to " + std::to_string(kMaxHeads));
  if (a.heads % a.kv_heads != 0) {
    refuse(field + ".kv_heads", a.kv_heads, "a divisor of heads, " + std::to_string(a.heads));
  }
  if (a.head_dim < 1 || a.head_dim > kMaxHeadDim) {
    refuse(field + ".head_dim", a.head_dim, "1 to " + std::to_string(kMaxHeadDim));
  }
  if (a.window < 0) refuse(field + ".window", a.window, "0 (full) or at least 1");
  if (a.rope < -1 || a.rope >= static_cast<std::int64_t>(ropes.size())) {
    refuse(field + ".rope", a.rope,
           "-1 or an index into the " + std::to_string(ropes.size()) + " ropes");
  }
  if (a.rope >= 0 && ropes[static_cast<std::size_t>(a.rope)].dim > a.head_dim) {
    refuse(field + ".rope", a.rope, "its dim is above head_dim, " + std::to_string(a.head_dim));
  }
  check_norm(field + ".q_norm", a.q_norm);
  check_norm(field + ".k_norm", a.k_norm);
  check_norm(field + ".out_norm", a.out_norm);
  if (!std::isfinite(a.query_scale)) refuse(field + ".query_scale", a.query_scale, "finite");
  check_number(field + ".softcap", a.softcap, 0, "0 (none) or above");
}

void check_experts(const std::string& field, const MlpSpec& mlp) {
  if (mlp.experts < 1 || mlp.experts > kMaxExperts) {
    refuse(field + ".experts", mlp.experts, "1 to " + std::to_string(kMaxExperts));
  }
  if (mlp.experts_per_token < 1 || mlp.experts_per_token > mlp.experts) {
    refuse(field + ".experts_per_token", mlp.experts_per_token,
           "1 to experts, " + std::to_string(mlp.experts));
  }
  if (mlp.router > RouterKind::sigmoid) {
    refuse(field + ".router", static_cast<int>(mlp.router), "no such router");
  }
  for (const auto& [name, value] :
       {std::pair{".router_scale", mlp.router_scale}, {".routed_scale", mlp.routed_scale}}) {
    if (!std::isfinite(value)) refuse(field + name, value, "finite");
  }
  if (mlp.expert_width != 0) check_size(field + ".expert_width", mlp.expert_width);
  if (mlp.shared_intermediate != 0) {
    check_size(field + ".shared_intermediate", mlp.shared_intermediate);
  } else if (mlp.shared_router) {
    throw UnsupportedModel("model spec: " + field + ".shared_router without a shared expert");
  }
  check_norm(field + ".expert_in_norm", mlp.expert_in_norm);
  check_norm(field + ".expert_out_norm", mlp.expert_out_norm);
}

void check_mlp(const std::string& field, const MlpSpec& mlp) {
  if (mlp.activation > Activation::quick_gelu) {
    refuse(field + ".activation", static_cast<int>(mlp.activation), "no such activation");
  }
  check_size(field + ".intermediate", mlp.intermediate);
  check_number(field + ".swiglu_limit", mlp.swiglu_limit, 0, "0 (none) or above");
  if (!std::isfinite(mlp.swiglu_alpha)) refuse(field + ".swiglu_alpha", mlp.swiglu_alpha, "finite");
  if (mlp.swiglu_limit > 0 && !(mlp.gated && mlp.activation == Activation::silu)) {
    refuse(field + ".swiglu_limit", mlp.swiglu_limit, "0 unless gated with silu");
  }
  if (mlp.kind == MlpKind::experts) check_experts(field, mlp);
}

[[noreturn]] void refuse_here(const std::string& field, const char* why) {
  throw UnsupportedModel("model spec: " + field + " " + why);
}

// What has no place outside encoders.
void check_no_encoder(const ModelSpec& spec) {
  const char* why = "is of encoders (bidirectional)";
  if (spec.positions != 0) refuse_here("positions", why);
  if (spec.token_types != 0) refuse_here("token_types", why);
  if (spec.normed_residual) refuse_here("normed_residual", why);
  if (spec.pooling != Pooling::none) refuse_here("pooling", why);
  if (spec.normalize) refuse_here("normalize", why);
}

void check_decoder(const ModelSpec& spec) {
  check_no_encoder(spec);
  if (spec.embed_norm.kind != NormKind::none && spec.embed_norm.kind != NormKind::rms_scaleless) {
    refuse("embed_norm.kind", static_cast<int>(spec.embed_norm.kind), "none or rms_scaleless");
  }
}

// What the encoder does not run: this is the shape of BERT.
void check_encoder(const ModelSpec& spec) {
  if (!spec.normed_residual) refuse_here("normed_residual", "is needed in an encoder");
  if (spec.pooling != Pooling::mean && spec.pooling != Pooling::cls) {
    refuse_here("pooling", "is mean or cls in an encoder");
  }
  if (spec.final_norm.kind != NormKind::none)
    refuse_here("final_norm", "has no place in an encoder");
  if (spec.mutual_rows) refuse_here("mutual_rows", "has no place in an encoder");
  if (spec.positions != 0 && (spec.positions < spec.max_context || spec.positions > kMaxSize)) {
    refuse("positions", spec.positions,
           "at least max_context, " + std::to_string(spec.max_context));
  }
  if (spec.token_types != 0) check_size("token_types", spec.token_types);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const std::string field = "layers[" + std::to_string(i) + "]";
    const AttentionSpec& a = spec.layers[i].attention;
    const char* why = "is not supported in an encoder";
    if (a.window != 0) refuse_here(field + ".attention.window", why);
    if (a.rope != -1) refuse_here(field + ".attention.rope", why);
    if (a.softcap != 0) refuse_here(field + ".attention.softcap", why);
    if (a.sinks) refuse_here(field + ".attention.sinks", why);
    if (a.output_gate) refuse_here(field + ".attention.output_gate", why);
    for (const NormSpec* norm : {&a.q_norm, &a.k_norm, &a.out_norm}) {
      if (norm->kind != NormKind::none) refuse_here(field + ".attention: a norm of heads", why);
    }
    if (spec.layers[i].mlp.kind != MlpKind::dense) refuse_here(field + ".mlp.kind", why);
  }
}

// What model/drafter.h does not run.
void check_drafter(const ModelSpec& spec) {
  check_no_encoder(spec);
  if (spec.bidirectional) refuse_here("bidirectional", "is of encoders, not of a drafter");
  if (spec.block < 2 || spec.block > kMaxBlock) {
    refuse("block", spec.block, "2 to " + std::to_string(kMaxBlock));
  }
  if (spec.mask_token < 0) refuse("mask_token", spec.mask_token, "a token id");
  if (spec.target_layers.empty()) throw UnsupportedModel("model spec: target_layers is empty");
  for (const std::int64_t layer : spec.target_layers) {
    if (layer < 0) refuse("target_layers", layer, "layers count from 0");
  }
  check_norm("context_norm", spec.context_norm);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const std::string field = "layers[" + std::to_string(i) + "]";
    const AttentionSpec& a = spec.layers[i].attention;
    const char* why = "is not supported in a drafter";
    if (a.window != 0 && a.window < spec.block) {
      refuse(field + ".attention.window", a.window,
             "at least the block, " + std::to_string(spec.block) + ", or 0");
    }
    if (a.output_gate) refuse_here(field + ".attention.output_gate", why);
    if (a.joint_qk_norm) refuse_here(field + ".attention.joint_qk_norm", why);
    if (spec.layers[i].mlp.kind != MlpKind::dense) refuse_here(field + ".mlp.kind", why);
  }
}

}  // namespace

void check_norm(const std::string& field, const NormSpec& norm) {
  if (norm.kind > NormKind::layer) {
    refuse(field + ".kind", static_cast<int>(norm.kind), "no such norm");
  }
  check_number(field + ".eps", norm.eps, 0, "a finite number, at least 0, is needed");
}

void check_layer(const std::string& field, const LayerSpec& layer,
                 std::span<const RopeSpec> ropes) {
  check_number(field + ".residual_temperature", layer.residual_temperature, 1e-6,
               "above 0 is needed");
  if (!std::isfinite(layer.residual_scale)) {
    refuse(field + ".residual_scale", layer.residual_scale, "finite");
  }
  check_attention(field + ".attention", layer.attention, ropes);
  check_mlp(field + ".mlp", layer.mlp);
  check_norm(field + ".attn_norm", layer.attn_norm);
  check_norm(field + ".post_attn_norm", layer.post_attn_norm);
  check_norm(field + ".mlp_norm", layer.mlp_norm);
  check_norm(field + ".post_mlp_norm", layer.post_mlp_norm);
}

void check_spec(const ModelSpec& spec) {
  check_size("vocab", spec.vocab);
  check_size("hidden", spec.hidden);
  if (spec.max_context < 1 || spec.max_context > RopeTable::kMaxPositions) {
    refuse("max_context", spec.max_context, "1 to " + std::to_string(RopeTable::kMaxPositions));
  }
  if (!std::isfinite(spec.embed_scale)) refuse("embed_scale", spec.embed_scale, "finite");
  if (!std::isfinite(spec.logit_scale)) refuse("logit_scale", spec.logit_scale, "finite");
  check_number("logit_softcap", spec.logit_softcap, 0, "0 (none) or above");
  check_norm("embed_norm", spec.embed_norm);
  check_norm("final_norm", spec.final_norm);
  if (spec.layers.empty()) throw UnsupportedModel("model spec: layers is empty");
  std::int64_t switches_at = 0;
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    const RopeSpec& rope = spec.ropes[i];
    const std::string field = "ropes[" + std::to_string(i) + "]";
    check_rope(field, rope);
    if (rope.axes.empty() != spec.ropes[0].axes.empty()) {
      refuse(field + ".axes", rope.axes.size(), "all ropes have axes, or none has");
    }
    if (rope.short_factors.empty()) continue;
    if (rope.original_context < 1 || (switches_at > 0 && rope.original_context != switches_at)) {
      refuse(field + ".original_context", rope.original_context,
             "at least 1, and the same in all ropes with short_factors");
    }
    switches_at = rope.original_context;
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const std::string field = "layers[" + std::to_string(i) + "]";
    check_layer(field, spec.layers[i], spec.ropes);
  }
  if (spec.block != 0) return check_drafter(spec);
  spec.bidirectional ? check_encoder(spec) : check_decoder(spec);
}

}  // namespace musespark

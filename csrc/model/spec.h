// ModelSpec: what a text tower is, as data. Made in Python from a checkpoint's config
// (families/<name>.py), converted once by the bindings; unknown fields are refused there.
// The forward path reads nothing else; it has no family names in it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/rowwise/rowwise.h"

namespace musespark {

// weight: x/rms * w.  centered: x/rms * (1 + w), the 1 added once at load.  scaleless: x/rms.
// input_scaled: rms_norm(x * (1 + w)) without a weight.  layer: LayerNorm with a weight.
enum class NormKind : std::uint32_t {
  none,
  rms,
  rms_centered,
  rms_scaleless,
  rms_input_scaled,
  layer
};
struct NormSpec {
  NormKind kind = NormKind::none;
  float eps = 0;
  bool bias = false;  // layer only: "<norm>_bias"
};

enum class RopeScaling : std::uint32_t { none, linear, llama3, yarn, factors };
struct RopeSpec {
  std::int64_t dim = 0;  // rotated floats of a head (partial rope: < head_dim)
  bool interleaved = false;
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  std::int64_t original_context = 0;                     // llama3, yarn
  double attention_factor = 1.0;                         // multiplies cos and sin
  // factors: the frequency of pair i is divided by factors[i]. short_factors, where there are any,
  // serve in their place while a sequence has at most original_context tokens (longrope): all of
  // its keys are made again when it grows beyond, as transformers does.
  std::vector<float> factors, short_factors;
  // By pair, the axis (0 time, 1 height, 2 width) whose position turns it; empty: positions have
  // one axis. Text has the same position along all three.
  std::vector<std::uint8_t> axes;
};

struct AttentionSpec {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t window = 0;   // 0: full; else a query sees itself and the window-1 positions before
  std::int64_t rope = -1;    // index into ModelSpec::ropes, -1: no positions
  NormSpec q_norm, k_norm;   // over head_dim, before rope; weights "q_norm", "k_norm" [head_dim]
  float query_scale = 1.0f;  // everything the query is multiplied with, 1/sqrt(head_dim) included
  float softcap = 0;         // 0: none
  bool sinks = false;        // weight "sinks" [heads]
  bool qkv_bias = false, o_bias = false;
  bool output_gate =
      false;  // o <- o * sigmoid(x . attn_gate^T), "attn_gate" [heads*head_dim, hidden]
  bool joint_qk_norm = false;  // q_norm and k_norm over all heads at once, weights [heads*head_dim]
  NormSpec out_norm;           // of what attention gives, over head_dim, before the gate
};

enum class MlpKind : std::uint32_t { dense, experts };

// What a router's logits become: softmax over all experts, over the chosen ones, or sigmoids.
enum class RouterKind : std::uint32_t { softmax, softmax_chosen, sigmoid };

struct MlpSpec {
  MlpKind kind = MlpKind::dense;
  Activation activation = Activation::silu;
  bool gated = true;  // down(f(gate(x)) * up(x)), else down(f(up(x)))
  bool bias = false;
  std::int64_t intermediate = 0;
  // swiglu_limit > 0 (gated silu): g = min(gate, limit), u = clamp(up, -limit, limit);
  // g * sigmoid(swiglu_alpha * g) * (u + 1).
  float swiglu_limit = 0, swiglu_alpha = 1.0f;

  // experts: `experts` such MLPs, "experts.{e}.gate" ..., of which a row runs experts_per_token.
  // logits = (x . router^T + router_bias) * router_scale. Chosen: the largest scores (+
  // router_correction, for the choice alone), the lower index first among equals. Outputs are
  // added in ascending expert index, each times its score * routed_scale.
  std::int64_t experts = 0, experts_per_token = 0;
  RouterKind router = RouterKind::softmax;
  bool router_renormalize = false;  // chosen scores are divided by their sum
  bool router_bias = false, router_correction = false;
  float router_scale = 1.0f, routed_scale = 1.0f;
  // expert_width > 0: experts read expert_in_norm(x . expert_in^T), and their sum goes through
  // expert_out [hidden, expert_width]. expert_out_norm: of each expert's output, before its score.
  std::int64_t expert_width = 0;
  NormSpec expert_in_norm, expert_out_norm;
  // A dense MLP beside the experts ("shared_gate" ...), times sigmoid(x . shared_router) where
  // there is one.
  std::int64_t shared_intermediate = 0;
  bool shared_router = false;
};

struct LayerSpec {
  AttentionSpec attention;
  MlpSpec mlp;
  NormSpec attn_norm, post_attn_norm, mlp_norm, post_mlp_norm;
  // x <- alpha * x + beta * y, from w = gate / residual_temperature: beta = sigmoid(w), alpha =
  // sqrt(max(sigmoid(-w) * (1 + beta), 1e-3)); "attn_residual_gate" "mlp_residual_gate" [hidden].
  bool residual_gates = false;
  float residual_temperature = 1.0f;
  float residual_scale = 1.0f;  // x <- x + residual_scale * y
};

enum class Pooling : std::uint32_t { none, mean, cls };

struct ModelSpec {
  std::int64_t vocab = 0, hidden = 0, max_context = 0;
  float embed_scale = 1.0f;
  NormSpec embed_norm;  // of the looked-up row; with a weight in encoders only
  NormSpec final_norm;
  bool tied_head = false;
  float logit_scale = 1.0f;
  float logit_softcap = 0;  // logits = cap * tanh(logits * logit_scale / cap)
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
  bool mutual_rows = false;  // given rows (given_rows.h) of one span see each other both ways

  // An encoder (model/encoder.h): every token sees every other, no head; the result is a pooled
  // row.
  bool bidirectional = false;
  std::int64_t positions = 0;    // learned: "positions" [positions, hidden], added to the embedding
  std::int64_t token_types = 0;  // "token_types" [token_types, hidden], row 0 is added
  bool normed_residual = false;  // x <- attn_norm(x + attention(x)), x <- mlp_norm(x + mlp(x))
  Pooling pooling = Pooling::none;
  bool normalize = false;  // the pooled row divided by its length

  // A block drafter (model/drafter.h): no embedding and no head of its own. What the layers
  // `target_layers` (from 0) of another model gave, side by side, goes through "context"
  // [hidden, layers * hidden] and context_norm.
  std::int64_t block = 0;       // positions of a pass, the known one included; 0: no drafter
  std::int64_t mask_token = 0;  // stands where a token is to be drafted
  std::vector<std::int64_t> target_layers;
  NormSpec context_norm;
};

}  // namespace musespark

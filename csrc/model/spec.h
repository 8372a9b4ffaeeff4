// ModelSpec: what a text tower is, as data. Made in Python from a checkpoint's config
// (families/<name>.py), converted once by the bindings; unknown fields are refused there.
// The forward path reads nothing else; it has no family names in it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/rowwise/rowwise.h"

namespace musespark {

// weight: x/rms * w.  centered: x/rms * (1 + w), the 1 added once at load.  scaleless: x/rms.
// input_scaled: rms_norm(x * (1 + w)) without a weight.  layer: LayerNorm with weight (and bias).
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
};

enum class RopeScaling : std::uint32_t { none, linear, llama3, yarn };
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
};

enum class MlpKind : std::uint32_t { dense, experts };
struct MlpSpec {
  MlpKind kind = MlpKind::dense;
  Activation activation = Activation::silu;
  bool gated = true;  // down(f(gate(x)) * up(x)), else down(f(up(x)))
  bool bias = false;
  std::int64_t intermediate = 0;
  // experts (part 2): count, chosen, router scoring, pooled width, shared experts ...
  std::int64_t experts = 0, experts_per_token = 0;
};

struct LayerSpec {
  AttentionSpec attention;
  MlpSpec mlp;
  NormSpec attn_norm, post_attn_norm, mlp_norm, post_mlp_norm;
  bool residual_gates = false;  // part 2: alpha * residual + beta * x, vectors folded at load
};

struct ModelSpec {
  std::int64_t vocab = 0, hidden = 0, max_context = 0;
  float embed_scale = 1.0f;
  NormSpec embed_norm;  // scaleless, on the looked-up row
  NormSpec final_norm;
  bool tied_head = false;
  float logit_scale = 1.0f;
  float logit_softcap = 0;  // logits = cap * tanh(logits * logit_scale / cap)
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

}  // namespace musespark

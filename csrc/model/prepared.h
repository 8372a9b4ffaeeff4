// A model's tensors, checked and ready: matrices as views of the file, vectors copied.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/spec.h"
#include "model/tensor_loader.h"
#include "model/text_model.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace musespark {

struct PreparedLayer {
  AttentionShape shape;  // floats and slabs are set by the model, from the page pool's layout
  Norm attn_norm, post_attn_norm, mlp_norm, post_mlp_norm;
  Norm q_norm, k_norm;              // of a head
  Norm joint_q_norm, joint_k_norm;  // of all heads at once
  Norm out_norm;                    // of a head of attention's output
  Join attn_join, mlp_join;
  Matrix q, k, v, attn_gate, o;    // attn_gate.packed.data null: no gate
  Expert mlp;                      // dense
  std::optional<Experts> experts;  // in place of it
  const float* sinks;              // [heads] or null
  std::int64_t rope;               // index into PreparedModel::ropes, -1: none
  bool interleaved;
  float query_scale;
  Gating gating;
  Needs attn_needs, o_needs, mlp_needs, down_needs;  // forms of the inputs of the matrices
  std::int64_t intermediate;                         // dense

  bool output_gate() const { return attn_gate.packed.data != nullptr; }
  std::int64_t q_cols() const { return shape.heads * shape.head_dim; }
  std::int64_t k_cols() const { return shape.kv_heads * shape.head_dim; }
  std::int64_t qkv_cols() const { return q_cols() + 2 * k_cols(); }
};

struct PreparedModel : LoadedTensors {
  Matrix embed, head;             // an encoder has no head
  Matrix positions, token_types;  // encoders
  Matrix context;                 // drafters, which have neither embedding nor head
  Norm embed_norm, final_norm, context_norm;
  Needs head_needs, context_needs;
  std::vector<PreparedLayer> layers;
  std::vector<RopeTable> ropes, short_ropes;
};

// The table of a rope; within_original: for sequences that stay within original_context, where the
// spec has factors of their own for them.
RopeTable make_rope(const RopeSpec& spec, bool within_original);

// Throws UnsupportedModel naming the field that this version lacks or that makes no sense.
void check_spec(const ModelSpec& spec);
// The same for one layer, and for a norm; `field` is what they are called. attention.rope indexes
// `ropes`.
void check_layer(const std::string& field, const LayerSpec& layer, std::span<const RopeSpec> ropes);
void check_norm(const std::string& field, const NormSpec& norm);

// A layer's tensors, `prefix` before their names. Throws CorruptFile.
PreparedLayer prepare_layer(TensorLoader& load, const std::string& prefix, const LayerSpec& from,
                            std::int64_t hidden, std::span<const RopeSpec> ropes);

// Throws CorruptFile for tensors that are missing, unknown, misshapen or misplaced.
PreparedModel prepare_model(const ModelSpec& spec,
                            const std::map<std::string, TensorView>& tensors);

}  // namespace musespark

// A model's tensors, checked and ready: matrices as views of the file, vectors copied.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "formats/kv_page.h"
#include "model/spec.h"
#include "model/text_model.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace musespark {

struct PreparedLayer {
  AttentionShape shape;  // slabs are set by the model, from the page pool's places
  Norm attn_norm, post_attn_norm, mlp_norm, post_mlp_norm, q_norm, k_norm;
  Matrix q, k, v, attn_gate, o;  // attn_gate.packed.data null: no gate
  Matrix gate, up, down;         // gate.packed.data null: not gated
  const float* sinks;            // [heads] or null
  std::int64_t rope;             // index into PreparedModel::ropes, -1: none
  bool interleaved;
  float query_scale;
  Activation activation;
  Needs attn_needs, o_needs, mlp_needs, down_needs;  // forms of the inputs of the matrices
  std::int64_t intermediate;

  bool output_gate() const { return attn_gate.packed.data != nullptr; }
  bool gated() const { return gate.packed.data != nullptr; }
  std::int64_t q_cols() const { return shape.heads * shape.head_dim; }
  std::int64_t qkv_cols() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }
};

struct PreparedModel {
  Matrix embed, head;
  Norm embed_norm, final_norm;
  Needs head_needs;
  std::vector<PreparedLayer> layers;
  std::vector<RopeTable> ropes;
  std::map<std::string, AlignedBuffer> vectors;  // what the Norms, biases and sinks point into
};

// Throws UnsupportedModel naming the field that this version lacks or that makes no sense.
void check_spec(const ModelSpec& spec);

// Throws CorruptFile for tensors that are missing, unknown, misshapen or misplaced.
PreparedModel prepare_model(const ModelSpec& spec, const std::map<std::string, TensorView>& tensors,
                            KvFormat kv);

}  // namespace musespark

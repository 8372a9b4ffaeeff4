#include "model/encoder.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "model/prepared.h"
#include "ops/full_attention.h"
#include "ops/pool.h"
#include "ops/rows_buffer.h"

namespace musespark {
namespace {

using Text = std::span<const std::int32_t>;

ModelSpec checked(ModelSpec spec) {
  check_spec(spec);
  if (!spec.bidirectional) {
    throw UnsupportedModel("model spec: bidirectional is false; an encoder is needed");
  }
  return spec;
}

void check_text(const ModelSpec& spec, const Text& text, std::size_t index) {
  const std::string where = "[embed] text " + std::to_string(index);
  if (text.empty()) throw InvalidRequest(where + " has no tokens");
  const auto length = static_cast<std::int64_t>(text.size());
  if (length > spec.max_context) {
    throw ContextOverflow(where + " has " + std::to_string(length) + " tokens; the model takes " +
                              std::to_string(spec.max_context),
                          length, spec.max_context);
  }
  for (const std::int32_t token : text) {
    if (token < 0 || token >= spec.vocab) {
      throw InvalidRequest(where + ": id " + std::to_string(token) + " is not in 0 .. " +
                           std::to_string(spec.vocab - 1));
    }
  }
}

FullAttentionShape shape_of(const PreparedLayer& layer) {
  return {layer.shape.heads, layer.shape.kv_heads, layer.shape.head_dim, layer.query_scale};
}

}  // namespace

struct Encoder::Impl {
  Impl(ModelSpec given, const std::map<std::string, TensorView>& tensors, ThreadPool& pool)
      : spec(checked(std::move(given))),
        kernels(musespark::kernels()),
        model(prepare_model(spec, tensors)),
        jobs(pool) {}

  void reserve(std::span<const Text> texts);
  void look_up(std::span<const Text> texts);
  void attention(const PreparedLayer& layer);
  void mlp(const PreparedLayer& layer, const Needs& next_needs);
  void pool(float* out) const;

  // The residual stream is the normed rows themselves: a norm is of the sum, and replaces it.
  Rows rows_for(const Needs& needs) const { return x.view(rows, spec.hidden, needs, true); }
  Residual residual() const { return {x.x, RowsBuffer::padded(spec.hidden), rows, spec.hidden}; }

  const ModelSpec spec;
  const KernelTable& kernels;
  PreparedModel model;
  Jobs jobs;

  // The call under way.
  AlignedBuffer buffer;
  RowsBuffer x, joined, inner;
  float *qkv = nullptr, *delta = nullptr;
  std::int64_t rows = 0;
  std::vector<TextSpan> spans;
};

void Encoder::Impl::reserve(std::span<const Text> texts) {
  spans.clear();
  rows = 0;
  std::int64_t longest = 0;
  for (const Text& text : texts) {
    const auto count = static_cast<std::int64_t>(text.size());
    spans.push_back({rows, count});
    rows += count;
    longest = std::max(longest, count);
  }
  std::int64_t qkv_cols = 0, joined_cols = 0, inner_cols = 0;
  std::int64_t scratch = model.scratch_bytes(rows);
  for (const PreparedLayer& layer : model.layers) {
    qkv_cols = std::max(qkv_cols, layer.qkv_cols());
    joined_cols = std::max(joined_cols, layer.q_cols());
    inner_cols = std::max(inner_cols, layer.intermediate);
    scratch = std::max(scratch, full_attention_scratch_bytes(shape_of(layer), longest));
  }
  jobs.reserve_scratch(scratch);
  carve_from(buffer, [&](Carver* c) {
    x = c->rows(rows, spec.hidden, true, 3);
    joined = c->rows(rows, joined_cols, true, 3);
    inner = c->rows(rows, inner_cols, true, 3);
    qkv = c->floats(rows, qkv_cols);
    delta = c->floats(rows, spec.hidden);
  });
}

// x = embed_norm((embed[token] + token_types[0]) + positions[position]).
void Encoder::Impl::look_up(std::span<const Text> texts) {
  const std::int64_t ld = RowsBuffer::padded(spec.hidden);
  const PackedMatrix* types = spec.token_types > 0 ? &model.token_types.packed : nullptr;
  const PackedMatrix* positions = spec.positions > 0 ? &model.positions.packed : nullptr;
  for (std::size_t t = 0; t < texts.size(); ++t) {
    embed_text(jobs, kernels, model.embed.packed, types, positions, texts[t],
               delta + spans[t].first * ld, ld);
  }
  norm_rows(jobs, kernels, delta, ld, model.embed_norm, rows_for(model.layers[0].attn_needs));
}

void Encoder::Impl::attention(const PreparedLayer& layer) {
  const std::int64_t ld = RowsBuffer::padded(layer.qkv_cols());
  const Rows in = rows_for(layer.attn_needs);
  float* k = qkv + layer.q_cols();
  const std::array<LinearOutput, 3> outputs = {LinearOutput{&in, &layer.q, qkv, ld},
                                               LinearOutput{&in, &layer.k, k, ld},
                                               LinearOutput{&in, &layer.v, k + layer.k_cols(), ld}};
  linear(jobs, kernels, outputs);
  const Rows heads = joined.view(rows, layer.q_cols(), layer.o_needs, true);
  full_attention(jobs, kernels, shape_of(layer), spans, qkv, ld, heads);
  const LinearOutput out{&heads, &layer.o, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_attn_norm, layer.attn_join, layer.attn_norm,
           rows_for(layer.mlp_needs));
}

void Encoder::Impl::mlp(const PreparedLayer& layer, const Needs& next_needs) {
  const Rows in = rows_for(layer.mlp_needs);
  const Rows hidden = inner.view(rows, layer.intermediate, layer.down_needs, false);
  const GatedOutput up{&in, layer.mlp.gate_or_null(), &layer.mlp.up, hidden};
  gated_linear(jobs, kernels, layer.gating, std::span(&up, 1));
  const LinearOutput out{&hidden, &layer.mlp.down, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_mlp_norm, layer.mlp_join, layer.mlp_norm,
           rows_for(next_needs));
}

void Encoder::Impl::pool(float* out) const {
  const std::int64_t ld = RowsBuffer::padded(spec.hidden);
  for (const TextSpan& span : spans) {
    const float* first = x.x + span.first * ld;
    if (spec.pooling == Pooling::mean) {
      mean_row(kernels, first, ld, span.count, spec.hidden, out);
    } else {
      std::copy_n(first, spec.hidden, out);
    }
    if (spec.normalize) normalize_row(kernels, out, spec.hidden);
    out += spec.hidden;
  }
}

Encoder::Encoder(ModelSpec spec, const std::map<std::string, TensorView>& tensors, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(std::move(spec), tensors, pool)) {}

Encoder::~Encoder() = default;

const ModelSpec& Encoder::spec() const { return impl_->spec; }

void Encoder::embed(std::span<const Text> texts, float* out) {
  Impl& m = *impl_;
  const FloatEnv environment;
  for (std::size_t i = 0; i < texts.size(); ++i) check_text(m.spec, texts[i], i);
  if (texts.empty()) return;
  m.reserve(texts);
  m.look_up(texts);
  for (std::size_t i = 0; i < m.model.layers.size(); ++i) {
    const bool last = i + 1 == m.model.layers.size();
    m.attention(m.model.layers[i]);
    m.mlp(m.model.layers[i], last ? Needs{} : m.model.layers[i + 1].attn_needs);
  }
  m.pool(out);
}

}  // namespace musespark

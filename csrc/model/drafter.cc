#include "model/drafter.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "model/prepared.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/rows_buffer.h"

namespace musespark {
namespace {

ModelSpec checked(ModelSpec spec) {
  check_spec(spec);
  if (spec.block == 0) throw UnsupportedModel("model spec: block is 0; a drafter is needed");
  return spec;
}

void check_pair(const ModelSpec& spec, const ModelSpec& target) {
  const auto refuse = [](const std::string& field, std::int64_t value, const std::string& other) {
    throw InvalidRequest("drafter: " + field + " is " + std::to_string(value) + ", " + other +
                         ": it was made for another model");
  };
  if (spec.hidden != target.hidden) {
    refuse("hidden", spec.hidden, "the model's is " + std::to_string(target.hidden));
  }
  if (spec.mask_token >= target.vocab) {
    refuse("mask_token", spec.mask_token,
           "the model's vocabulary has " + std::to_string(target.vocab) + " tokens");
  }
  // Of the last layer only rows whose logits are wanted are computed.
  const auto last = static_cast<std::int64_t>(target.layers.size()) - 1;
  for (const std::int64_t layer : spec.target_layers) {
    if (layer < last) continue;
    refuse("target_layers has " + std::to_string(layer) + "; allowed", last - 1,
           "the last but one of the model's " + std::to_string(last + 1) + " layers");
  }
}

KvLayout floats_of(const ModelSpec& spec) {
  return kv_layout_of(spec, same_for_all(spec, KvFormat::f32));
}

}  // namespace

struct Drafter::Impl {
  Impl(ModelSpec own, const Tensors& tensors, const ModelSpec& of, const Tensors& target_tensors,
       ThreadPool& pool)
      : spec(checked(std::move(own))),
        kernels(musespark::kernels()),
        layout(floats_of(spec)),
        model(prepare_model(spec, tensors)),
        jobs(pool),
        target(of) {
    check_pair(spec, target);
    TensorLoader load(target_tensors, &shared);
    embedding = load.matrix("embed", target.vocab, target.hidden);
    head = target.tied_head ? embedding : load.matrix("head", target.vocab, target.hidden);
    head_needs.add(head);
    for (PreparedLayer& layer : model.layers) {
      layer.shape.floats = true;
      kv_needs.add(layer.attn_needs);
    }
    ahead.resize(static_cast<std::size_t>(spec.block));
    all_rows.resize(ahead.size());
    for (std::int64_t r = 0; r < spec.block; ++r) {
      ahead[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(spec.block - 1 - r);
      all_rows[static_cast<std::size_t>(r)] = r;
    }
  }

  void reserve(std::int64_t context_rows);
  void map_pages(const Context& context, std::int64_t count);
  AttentionSpan span_of(const Context& context, std::size_t layer, std::int64_t rows) const;
  HeadsArgs heads_of(const PreparedLayer& layer, const float* qkv) const;
  void extend(const Context& context, const float* from, std::int64_t rows);
  void attention(std::size_t index, const AttentionSpan& span);
  void mlp(const PreparedLayer& layer, const Norm& next, const Needs& next_needs);

  Residual residual() const {
    return {x, RowsBuffer::padded(spec.hidden), spec.block, spec.hidden};
  }
  Rows normed(const Needs& needs) const {
    return normed_rows.view(spec.block, spec.hidden, needs, true);
  }
  std::int64_t width() const {
    return static_cast<std::int64_t>(spec.target_layers.size()) * spec.hidden;
  }

  const ModelSpec spec;
  const KernelTable& kernels;
  const KvLayout layout;
  PreparedModel model;
  Jobs jobs;
  const ModelSpec target;
  LoadedTensors shared;  // the target's: views alone
  Matrix embedding, head;
  Needs head_needs, kv_needs;
  std::vector<std::int32_t> ahead;  // of a block's rows: each sees all of it
  std::vector<std::int64_t> all_rows;

  // The call under way.
  AlignedBuffer buffer;
  RowsBuffer states, context_rows;        // extend
  float* keys = nullptr;                  // extend: of all layers, like qkv
  RowsBuffer normed_rows, joined, inner;  // draft
  float *x = nullptr, *delta = nullptr, *qkv = nullptr, *queries = nullptr, *heads = nullptr;
  AttentionPlan plan;
  std::vector<std::vector<KvPageView>> pages;  // by page class
  std::vector<int> class_of;                   // by layer
};

// Room for a block, and for extending by so many rows.
void Drafter::Impl::reserve(std::int64_t n) {
  const StepWidths w = step_widths(spec);
  const std::int64_t block = spec.block;
  std::int64_t scratch =
      std::max(model.scratch_bytes(std::max(n, block)), shared.scratch_bytes(block));
  for (const PreparedLayer& layer : model.layers) {
    scratch = std::max(scratch, attend_scratch_bytes(layer.shape));
  }
  jobs.reserve_scratch(scratch);
  carve_from(buffer, [&](Carver* c) {
    states = c->rows(n, width(), true, 3);
    context_rows = c->rows(n, spec.hidden, true, 3);
    keys = c->floats(n, w.qkv);
    normed_rows = c->rows(block, spec.hidden, true, 3);
    joined = c->rows(block, w.joined, true, 3);
    inner = c->rows(block, w.hidden_mlp, true, 3);
    x = c->floats(block, spec.hidden);
    delta = c->floats(block, spec.hidden);
    qkv = c->floats(block, w.qkv);
    queries = c->take<float>(block * w.heads);
    heads = c->take<float>(block * w.heads);
  });
}

// The addresses of the pages of a step of `count` rows that is open.
void Drafter::Impl::map_pages(const Context& context, std::int64_t count) {
  const PagePool& pool = context.kv.pool();
  class_of.clear();
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const KvPlace& p = pool.place(static_cast<std::int64_t>(i));
    class_of.push_back(p.page_class);
    model.layers[i].shape.slabs = {
        p.open_offset, p.open_stride, {p.sealed[0].data(), p.sealed[1].data(), p.sealed[2].data()}};
  }
  pages.resize(static_cast<std::size_t>(pool.classes()));
  const std::int64_t end = context.kv.length() + count;
  for (std::size_t c = 0; c < pages.size(); ++c) {
    pages[c].clear();
    for (std::int64_t page = 0; page * kPageTokens < end; ++page) {
      const Sequence::Parts parts = context.kv.parts(static_cast<int>(c), page);
      pages[c].push_back({parts.open, parts.sealed, parts.form});
    }
  }
  for (RopeTable& rope : model.ropes) rope.extend(context.first + end);
}

AttentionSpan Drafter::Impl::span_of(const Context& context, std::size_t layer,
                                     std::int64_t rows) const {
  const auto page_class = static_cast<std::size_t>(class_of[layer]);
  return {.row = 0,
          .rows = rows,
          .position = context.kv.length(),
          .pages = pages[page_class].data(),
          .shift = context.first};
}

// Queries are made where there is room for them.
HeadsArgs Drafter::Impl::heads_of(const PreparedLayer& layer, const float* from) const {
  const RopeTable* rope =
      layer.rope < 0 ? nullptr : &model.ropes[static_cast<std::size_t>(layer.rope)];
  return {.q_norm = layer.q_norm,
          .k_norm = layer.k_norm,
          .rope = rope,
          .short_rope = rope,
          .interleaved = layer.interleaved,
          .query_scale = layer.query_scale,
          .qkv = from,
          .ld = RowsBuffer::padded(layer.qkv_cols()),
          .queries = from == qkv ? queries : nullptr};
}

void Drafter::Impl::extend(const Context& context, const float* from, std::int64_t rows) {
  const Rows in = states.view(rows, width(), model.context_needs, true);
  for (std::int64_t r = 0; r < rows; ++r)
    std::copy_n(from + r * width(), width(), in.x + r * in.ldx);
  quantize_rows(jobs, kernels, in);
  const Rows context_in = context_rows.view(rows, spec.hidden, kv_needs, true);
  const LinearOutput projected{&in, &model.context, context_in.x, context_in.ldx};
  linear(jobs, kernels, std::span(&projected, 1));
  norm_rows(jobs, kernels, context_in.x, context_in.ldx, model.context_norm, context_in);
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const PreparedLayer& layer = model.layers[i];
    const HeadsArgs args = heads_of(layer, keys);
    float* k = keys + layer.q_cols();
    const std::array<LinearOutput, 2> outputs = {
        LinearOutput{&context_in, &layer.k, k, args.ld},
        LinearOutput{&context_in, &layer.v, k + layer.k_cols(), args.ld}};
    linear(jobs, kernels, outputs);
    const AttentionSpan span = span_of(context, i, rows);
    prepare_heads(jobs, kernels, layer.shape, std::span(&span, 1), rows, args);
  }
}

// Normed rows in, the next half's normed rows out.
void Drafter::Impl::attention(std::size_t index, const AttentionSpan& span) {
  const PreparedLayer& layer = model.layers[index];
  const Rows in = normed(layer.attn_needs);
  const HeadsArgs args = heads_of(layer, qkv);
  float* k = qkv + layer.q_cols();
  const std::array<LinearOutput, 3> outputs = {
      LinearOutput{&in, &layer.q, qkv, args.ld}, LinearOutput{&in, &layer.k, k, args.ld},
      LinearOutput{&in, &layer.v, k + layer.k_cols(), args.ld}};
  linear(jobs, kernels, outputs);
  const std::span<const AttentionSpan> spans(&span, 1);
  prepare_heads(jobs, kernels, layer.shape, spans, spec.block, args);
  plan.make(layer.shape, spans, jobs.threads());
  attend(jobs, kernels, layer.shape, spans, spec.block, plan, queries, layer.sinks, heads);
  const Rows side_by_side = joined.view(spec.block, layer.q_cols(), layer.o_needs, true);
  join_heads(jobs, kernels, layer.shape, heads, spec.block, all_rows, layer.out_norm, nullptr, 0,
             side_by_side);
  const LinearOutput out{&side_by_side, &layer.o, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_attn_norm, layer.attn_join, layer.mlp_norm,
           normed(layer.mlp_needs));
}

void Drafter::Impl::mlp(const PreparedLayer& layer, const Norm& next, const Needs& next_needs) {
  const Rows in = normed(layer.mlp_needs);
  const Rows hidden = inner.view(spec.block, layer.intermediate, layer.down_needs, true);
  const GatedOutput up{&in, layer.mlp.gate_or_null(), &layer.mlp.up, hidden};
  gated_linear(jobs, kernels, layer.gating, std::span(&up, 1));
  const LinearOutput out{&hidden, &layer.mlp.down, delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  add_norm(jobs, kernels, residual(), delta, layer.post_mlp_norm, layer.mlp_join, next,
           normed(next_needs));
}

Drafter::Drafter(ModelSpec spec, const Tensors& tensors, const ModelSpec& target,
                 const Tensors& target_tensors, ThreadPool& pool)
    : impl_(std::make_unique<Impl>(std::move(spec), tensors, target, target_tensors, pool)) {}

Drafter::~Drafter() = default;

const ModelSpec& Drafter::spec() const { return impl_->spec; }
const KvLayout& Drafter::kv_layout() const { return impl_->layout; }
std::int64_t Drafter::vocab() const { return impl_->target.vocab; }
std::int64_t Drafter::state_width() const { return impl_->width(); }

std::int64_t Drafter::reach() const {
  std::int64_t reach = 0;
  for (const LayerSpec& layer : impl_->spec.layers) {
    if (layer.attention.window == 0) return 0;
    reach = std::max(reach, layer.attention.window - 1);
  }
  return reach;
}

void Drafter::extend(const Context& context, const float* states, std::int64_t rows) {
  Impl& m = *impl_;
  const FloatEnv environment;
  if (rows < 1 || rows > kMostRows) {
    throw InvalidRequest("[drafter] got " + std::to_string(rows) + " rows, allowed is 1 to " +
                         std::to_string(kMostRows));
  }
  m.reserve(rows);
  context.kv.begin_step(rows);
  try {
    m.map_pages(context, rows);
    m.extend(context, states, rows);
  } catch (...) {
    context.kv.discard_step();
    throw;
  }
  context.kv.commit_step();
  context.kv.accept(context.kv.length());
}

bool Drafter::draft(const Context& context, std::int32_t last, std::int64_t count,
                    const std::function<bool()>& interrupted, float* logits) {
  Impl& m = *impl_;
  const FloatEnv environment;
  const std::int64_t block = m.spec.block;
  if (count < 1 || count >= block) {
    throw InvalidRequest("[drafter] got " + std::to_string(count) + " tokens, allowed is 1 to " +
                         std::to_string(block - 1));
  }
  m.reserve(1);
  context.kv.begin_step(block);
  struct Discard {  // nothing of a block stays
    Sequence& kv;
    ~Discard() { kv.discard_step(); }
  } const discard{context.kv};
  m.map_pages(context, block);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(block),
                                   static_cast<std::int32_t>(m.spec.mask_token));
  tokens[0] = last;
  const PreparedModel& model = m.model;
  embed(m.jobs, m.kernels, m.embedding.packed, tokens, {}, m.target.embed_scale, Norm{},
        m.residual(), model.layers[0].attn_norm, m.normed(model.layers[0].attn_needs));
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    if (interrupted && interrupted()) return false;
    AttentionSpan span = m.span_of(context, i, block);
    span.ahead = m.ahead.data();
    m.attention(i, span);
    const bool end = i + 1 == model.layers.size();
    m.mlp(model.layers[i], end ? model.final_norm : model.layers[i + 1].attn_norm,
          end ? m.head_needs : model.layers[i + 1].attn_needs);
  }
  const Rows in = m.normed(m.head_needs).slice(1, count);
  const LinearOutput out{&in, &m.head, logits, m.target.vocab};
  linear(m.jobs, m.kernels, std::span(&out, 1));
  cap_logits(m.jobs, m.kernels, m.target.logit_scale, m.target.logit_softcap,
             count * m.target.vocab, logits);
  return true;
}

}  // namespace musespark

#include "model/text_model.h"

#include "model/attention_weights.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "model/adapter.h"
#include "model/check_step.h"
#include "model/prepared.h"
#include "model/workspace.h"

namespace musespark {
namespace {

ModelSpec checked(ModelSpec spec) {
  check_spec(spec);
  if (spec.bidirectional) {
    throw UnsupportedModel("model spec: bidirectional: an encoder has no text to continue");
  }
  if (spec.block > 0) {
    throw UnsupportedModel("model spec: block: a drafter writes nothing without its model");
  }
  return spec;
}

// Opens a step on every sequence and takes it back unless it is committed.
class OpenStep {
 public:
  explicit OpenStep(std::span<const StepSpan> spans) : spans_(spans) {
    try {
      for (; begun_ < spans_.size(); ++begun_) spans_[begun_].seq->begin_step(spans_[begun_].count);
    } catch (...) {
      discard();
      throw;
    }
  }
  ~OpenStep() { discard(); }
  OpenStep(const OpenStep&) = delete;
  OpenStep& operator=(const OpenStep&) = delete;

  void commit() {
    for (std::size_t i = 0; i < begun_; ++i) spans_[i].seq->commit_step();
    begun_ = 0;
  }

 private:
  void discard() noexcept {
    for (std::size_t i = 0; i < begun_; ++i) spans_[i].seq->discard_step();
    begun_ = 0;
  }
  std::span<const StepSpan> spans_;
  std::size_t begun_ = 0;
};

}  // namespace

struct TextModel::Impl {
  Impl(ModelSpec given, const std::map<std::string, TensorView>& tensors, ThreadPool& pool,
       const KvChoice& kv)
      : spec(checked(std::move(given))),
        kernels(musespark::kernels()),
        layout(kv_layout_of(spec, kv)),
        model(prepare_model(spec, tensors)),
        jobs(pool),
        widths(step_widths(spec)),
        given(spec) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      model.layers[i].shape.floats = layout.layers[i].formats[0] == KvFormat::f32;
    }
    widths.mlp_floats = std::any_of(model.layers.begin(), model.layers.end(),
                                    [](const PreparedLayer& l) { return l.down_needs.floats; });
    widths.forms = std::max(1, model.head_needs.forms());
    for (const PreparedLayer& l : model.layers) {
      for (const Needs* needs : {&l.attn_needs, &l.o_needs, &l.mlp_needs, &l.down_needs}) {
        widths.forms = std::max(widths.forms, needs->forms());
      }
    }
  }

  std::int64_t scratch_bytes(std::int64_t rows) const;
  void collect_rows(std::span<const StepSpan> spans);
  void map_pages(std::span<const StepSpan> spans);
  StepOutcome run(std::span<const StepSpan> spans, const StepControl& control, float* logits_out);
  void project(std::size_t index);
  void keep_wanted(std::span<const AttentionSpan> spans);
  void attention(std::size_t index, bool last);
  void mlp(std::size_t index, const Norm& next, const Needs& next_needs);
  void gate_and_up(std::size_t index, const Rows& in, const Rows& hidden);
  void log_queries(std::size_t index, const AttentionShape& shape);
  void log_states(std::span<const StepSpan> spans, std::size_t index);
  void joint_norm(const Norm& norm, float* x, std::int64_t ld, std::int64_t cols);

  Residual residual() const {
    return {work.residual, RowsBuffer::padded(spec.hidden), rows, spec.hidden};
  }
  Rows normed(const Needs& needs) const { return work.normed.view(rows, spec.hidden, needs, true); }

  void show(InputOf what, std::size_t index, const Rows& in) const {
    if (tap) tap->see(what, static_cast<std::int64_t>(index), 0, in);
  }

  const ModelSpec spec;
  const KernelTable& kernels;
  const KvLayout layout;
  PreparedModel model;
  Jobs jobs;
  StepWidths widths;

  // The step under way.
  InputTap* tap = nullptr;
  Workspace work;
  AttentionPlan plan;
  ExpertsRunner experts;
  AdaptedRows adapted;
  StepGiven given;
  std::int64_t rows = 0;               // of the batch; from the last layer's end: rows wanted
  std::vector<std::int32_t> tokens;    // [rows]
  std::vector<std::int64_t> all_rows;  // 0, 1, ...
  std::vector<std::int64_t> wanted;    // batch rows whose logits are wanted
  std::vector<std::vector<KvPageView>> pages;        // by page class: the tables of all spans
  std::vector<std::vector<AttentionSpan>> spans_of;  // by page class
  std::vector<AttentionSpan> wanted_spans;
  std::vector<const KvPlace*> places;  // by layer
  std::vector<QueryLog*> logs;         // by span, null where not wanted
};

std::int64_t TextModel::Impl::scratch_bytes(std::int64_t n) const {
  std::int64_t bytes = model.scratch_bytes(n);
  for (const PreparedLayer& layer : model.layers) {
    bytes = std::max(bytes, attend_scratch_bytes(layer.shape));
  }
  return bytes;
}

// The batch: tokens in order, and the rows whose logits are wanted.
void TextModel::Impl::collect_rows(std::span<const StepSpan> spans) {
  tokens.clear();
  wanted.clear();
  given.clear();
  for (const StepSpan& span : spans) {
    given.add(span.given, span.seq->length(), span.count);
    const auto first = static_cast<std::int64_t>(tokens.size());
    tokens.insert(tokens.end(), span.tokens, span.tokens + span.count);
    const std::int64_t end = first + span.count;
    if (span.logits == StepSpan::Logits::last) wanted.push_back(end - 1);
    if (span.logits == StepSpan::Logits::all) {
      for (std::int64_t row = first; row < end; ++row) wanted.push_back(row);
    }
  }
  rows = static_cast<std::int64_t>(tokens.size());
  while (static_cast<std::int64_t>(all_rows.size()) < rows) {
    all_rows.push_back(static_cast<std::int64_t>(all_rows.size()));
  }
}

// The page tables of the step, as addresses. The sequences' steps are open.
void TextModel::Impl::map_pages(std::span<const StepSpan> spans) {
  const PagePool& pool = spans[0].seq->pool();
  places.clear();
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const KvPlace& p = pool.place(static_cast<std::int64_t>(i));
    places.push_back(&p);
    model.layers[i].shape.slabs = {
        p.open_offset, p.open_stride, {p.sealed[0].data(), p.sealed[1].data(), p.sealed[2].data()}};
  }
  const auto classes = static_cast<std::size_t>(pool.classes());
  pages.resize(classes);
  spans_of.resize(classes);
  for (std::size_t c = 0; c < classes; ++c) {
    pages[c].clear();
    for (const StepSpan& span : spans) {
      const std::int64_t end = span.seq->slots(static_cast<int>(c)) + span.count;
      for (std::int64_t page = 0; page * kPageTokens < end; ++page) {
        const Sequence::Parts parts = span.seq->parts(static_cast<int>(c), page);
        pages[c].push_back({parts.open, parts.sealed, parts.form});
      }
    }
    spans_of[c].clear();
    std::int64_t row = 0;
    std::size_t table = 0;
    for (const StepSpan& span : spans) {
      const std::int64_t slot = span.seq->slots(static_cast<int>(c));
      spans_of[c].push_back({row, span.count, slot, pages[c].data() + table, span.short_rope,
                             span.seq->length() - slot,
                             span.given.empty() ? nullptr : given.places(row), given.ahead(row)});
      row += span.count;
      table += static_cast<std::size_t>((slot + span.count + kPageTokens - 1) / kPageTokens);
    }
  }
}

// Norms columns [0, cols) of the step's rows in place.
void TextModel::Impl::joint_norm(const Norm& norm, float* x, std::int64_t ld, std::int64_t cols) {
  if (norm.kind == Norm::Kind::none) return;
  norm_rows(jobs, kernels, x, ld, norm, {rows, cols, x, ld, {}});
}

// Queries, keys and values of the normed rows into work.qkv, the attention's gate into work.gate.
void TextModel::Impl::project(std::size_t index) {
  const PreparedLayer& layer = model.layers[index];
  const Rows in = normed(layer.attn_needs);
  show(InputOf::attn, index, in);
  const std::int64_t ld = RowsBuffer::padded(layer.qkv_cols());
  const std::int64_t ld_gate = RowsBuffer::padded(layer.q_cols());
  float* k = work.qkv + layer.q_cols();
  float* v = k + layer.k_cols();
  const std::array<LinearOutput, 4> outputs = {
      LinearOutput{&in, &layer.q, work.qkv, ld}, LinearOutput{&in, &layer.k, k, ld},
      LinearOutput{&in, &layer.v, v, ld}, LinearOutput{&in, &layer.attn_gate, work.gate, ld_gate}};
  linear(jobs, kernels, std::span(outputs).first(layer.output_gate() ? 4 : 3));
  const std::array<AdaptedRows::Product, 4> products = {
      {{AdapterTarget::q, &in, work.qkv, ld},
       {AdapterTarget::k, &in, k, ld},
       {AdapterTarget::v, &in, v, ld},
       {AdapterTarget::attn_gate, &in, work.gate, ld_gate}}};
  adapted.add(jobs, kernels, index, products);
  joint_norm(layer.joint_q_norm, work.qkv, ld, layer.q_cols());
  joint_norm(layer.joint_k_norm, k, ld, layer.k_cols());
}

// The last queries of the spans that want them.
void TextModel::Impl::log_queries(std::size_t index, const AttentionShape& shape) {
  const std::int64_t width = shape.group() * shape.padded_dim;
  for (std::size_t s = 0; s < logs.size() && shape.window == 0; ++s) {
    if (logs[s] == nullptr) continue;
    const AttentionSpan& span = spans_of[0][s];
    std::vector<float>& log = logs[s]->layers[index];
    log.resize(static_cast<std::size_t>(QueryLog::kRows * shape.kv_heads * width));
    for (std::int64_t r = std::max<std::int64_t>(0, span.rows - QueryLog::kRows); r < span.rows;
         ++r) {
      const std::int64_t at = (span.position + span.shift + r) % QueryLog::kRows;
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        std::copy_n(work.queries + (h * rows + span.row + r) * width, width,
                    log.data() + (h * QueryLog::kRows + at) * width);
      }
    }
  }
}

// The residual after a layer, of the spans that want it.
void TextModel::Impl::log_states(std::span<const StepSpan> spans, std::size_t index) {
  const std::int64_t ld = RowsBuffer::padded(spec.hidden);
  const float* x = work.residual;
  for (const StepSpan& span : spans) {
    if (span.states) {
      span.states->take(static_cast<std::int64_t>(index), x, ld, span.count, spec.hidden);
    }
    x += span.count * ld;
  }
}

// The rows of the spans whose logits are wanted, as spans.
void TextModel::Impl::keep_wanted(std::span<const AttentionSpan> spans) {
  wanted_spans.clear();
  std::size_t next = 0;  // wanted rows are ascending and, in a span, the last ones of it
  for (const AttentionSpan& span : spans) {
    const std::size_t first = next;
    while (next < wanted.size() && wanted[next] < span.row + span.rows) ++next;
    const auto count = static_cast<std::int64_t>(next - first);
    const std::int64_t skipped = span.rows - count;
    if (count == 0) continue;
    wanted_spans.push_back({span.row + skipped, count, span.position + skipped, span.pages,
                            span.short_rope, span.shift, nullptr,
                            span.ahead ? span.ahead + skipped : nullptr});
  }
}

// Norm'ed rows in, the attention's share of the residual in work.delta. In the last layer only the
// wanted rows go on from here, and become the batch.
void TextModel::Impl::attention(std::size_t index, bool last) {
  const PreparedLayer& layer = model.layers[index];
  const AttentionShape& shape = layer.shape;
  const std::int64_t ld = RowsBuffer::padded(layer.qkv_cols());
  const std::int64_t ld_gate = RowsBuffer::padded(layer.q_cols());
  project(index);

  const auto& spans = spans_of[static_cast<std::size_t>(places[index]->page_class)];
  const HeadsArgs heads{
      layer.q_norm,
      layer.k_norm,
      layer.rope < 0 ? nullptr : &model.ropes[static_cast<std::size_t>(layer.rope)],
      layer.rope < 0 ? nullptr : &model.short_ropes[static_cast<std::size_t>(layer.rope)],
      layer.interleaved,
      layer.query_scale,
      work.qkv,
      ld,
      work.queries};
  prepare_heads(jobs, kernels, shape, spans, rows, heads);
  if (tap) {
    tap->see_heads(static_cast<std::int64_t>(index),
                   {shape, spans, rows, work.queries, layer.sinks});
  }
  log_queries(index, shape);

  const std::int64_t batch = rows;
  std::span<const AttentionSpan> attended = spans;
  std::span<const std::int64_t> chosen(all_rows.data(), static_cast<std::size_t>(rows));
  if (last && static_cast<std::int64_t>(wanted.size()) < rows) {
    keep_wanted(spans);
    attended = wanted_spans;
    chosen = wanted;
    gather_rows(residual(), wanted);
    adapted.keep(wanted);
    rows = static_cast<std::int64_t>(wanted.size());
    if (rows == 0) return;
  }
  plan.make(shape, attended, jobs.threads());
  attend(jobs, kernels, shape, attended, batch, plan, work.queries, layer.sinks, work.heads);
  const Rows joined = work.joined.view(rows, layer.q_cols(), layer.o_needs, true);
  join_heads(jobs, kernels, shape, work.heads, batch, chosen, layer.out_norm,
             layer.output_gate() ? work.gate : nullptr, ld_gate, joined);
  show(InputOf::o, index, joined);
  const LinearOutput out{&joined, &layer.o, work.delta, RowsBuffer::padded(spec.hidden)};
  linear(jobs, kernels, std::span(&out, 1));
  const AdaptedRows::Product product{AdapterTarget::o, &joined, work.delta, out.ldo};
  adapted.add(jobs, kernels, index, std::span(&product, 1));
  add_norm(jobs, kernels, residual(), work.delta, layer.post_attn_norm, layer.attn_join,
           layer.mlp_norm, normed(layer.mlp_needs));
}

// hidden = f(gate) * up of the rows. Where a row's adapter adds to gate or up, which comes before
// the activation, they are made one after the other for all rows: the bits are the fused job's.
void TextModel::Impl::gate_and_up(std::size_t index, const Rows& in, const Rows& hidden) {
  const PreparedLayer& layer = model.layers[index];
  const Matrix* gate = layer.mlp.gate_or_null();
  if (!adapted.any(index, AdapterTarget::gate) && !adapted.any(index, AdapterTarget::up)) {
    const GatedOutput inner{&in, gate, &layer.mlp.up, hidden};
    gated_linear(jobs, kernels, layer.gating, std::span(&inner, 1));
    return;
  }
  const AdaptedRows::Inner room = adapted.inner(rows, layer.intermediate);
  const std::int64_t ld = RowsBuffer::padded(layer.intermediate);
  const std::array<LinearOutput, 2> outputs = {LinearOutput{&in, &layer.mlp.up, room.up, ld},
                                               LinearOutput{&in, gate, room.gate, ld}};
  linear(jobs, kernels, std::span(outputs).first(gate ? 2 : 1));
  const std::array<AdaptedRows::Product, 2> products = {
      {{AdapterTarget::up, &in, room.up, ld}, {AdapterTarget::gate, &in, room.gate, ld}}};
  adapted.add(jobs, kernels, index, products);
  gate_rows(jobs, kernels, layer.gating, gate ? room.gate : nullptr, room.up, ld, hidden);
}

// Normed rows in, the residual's sum and the next norm's rows out.
void TextModel::Impl::mlp(std::size_t index, const Norm& next, const Needs& next_needs) {
  const PreparedLayer& layer = model.layers[index];
  const Rows in = normed(layer.mlp_needs);
  show(InputOf::mlp, index, in);
  if (layer.experts) {
    experts.run(jobs, kernels, *layer.experts, in, work.delta, tap,
                static_cast<std::int64_t>(index));
  } else {
    Rows hidden = work.mlp.view(rows, layer.intermediate, layer.down_needs, false);
    if (!hidden.x && adapted.any(index, AdapterTarget::down)) {
      hidden.x = adapted.inner(rows, layer.intermediate).hidden;
    }
    gate_and_up(index, in, hidden);
    show(InputOf::down, index, hidden);
    const LinearOutput out{&hidden, &layer.mlp.down, work.delta, RowsBuffer::padded(spec.hidden)};
    linear(jobs, kernels, std::span(&out, 1));
    const AdaptedRows::Product product{AdapterTarget::down, &hidden, work.delta, out.ldo};
    adapted.add(jobs, kernels, index, std::span(&product, 1));
  }
  if (const auto more = given.tap(index); !more.empty()) add_rows(jobs, kernels, more, residual());
  add_norm(jobs, kernels, residual(), work.delta, layer.post_mlp_norm, layer.mlp_join, next,
           normed(next_needs));
  adapted.steer(jobs, kernels, index, residual(), next, normed(next_needs));
}

StepOutcome TextModel::Impl::run(std::span<const StepSpan> spans, const StepControl& control,
                                 float* logits_out) {
  const FloatEnv environment;
  const auto interrupted = [&] { return control.interrupted && control.interrupted(); };
  tap = control.tap;
  check_step(spans, spec, layout);
  collect_rows(spans);
  adapted.begin(spans);
  work.reserve(widths, rows);
  jobs.reserve_scratch(scratch_bytes(rows));
  for (const StepSpan& span : spans) {
    auto& ropes = span.short_rope ? model.short_ropes : model.ropes;
    for (RopeTable& rope : ropes) rope.extend(span.seq->length() + span.count);
  }
  logs.clear();
  for (const StepSpan& span : spans) {
    logs.push_back(span.log);
    if (span.log) span.log->layers.resize(model.layers.size());
    if (span.states) span.states->begin(span.count, spec.hidden);
  }
  OpenStep step(spans);
  map_pages(spans);

  embed(jobs, kernels, model.embed.packed, tokens, given.rows(), spec.embed_scale, model.embed_norm,
        residual(), model.layers[0].attn_norm, normed(model.layers[0].attn_needs));
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    if (interrupted()) return StepOutcome::interrupted;
    const bool last = i + 1 == model.layers.size();
    attention(i, last);
    if (rows == 0) break;  // nobody asked for logits: keys and values are all there is to make
    mlp(i, last ? model.final_norm : model.layers[i + 1].attn_norm,
        last ? model.head_needs : model.layers[i + 1].attn_needs);
    if (!last) log_states(spans, i);
  }
  if (rows > 0) show(InputOf::head, 0, normed(model.head_needs));
  if (interrupted()) return StepOutcome::interrupted;
  if (rows > 0) {
    const Rows in = normed(model.head_needs);
    const LinearOutput out{&in, &model.head, logits_out, spec.vocab};
    linear(jobs, kernels, std::span(&out, 1));
    cap_logits(jobs, kernels, spec.logit_scale, spec.logit_softcap, rows * spec.vocab, logits_out);
  }
  step.commit();
  return StepOutcome::done;
}

TextModel::TextModel(ModelSpec spec, const std::map<std::string, TensorView>& tensors,
                     ThreadPool& pool, const KvChoice& kv)
    : impl_(std::make_unique<Impl>(std::move(spec), tensors, pool, kv)) {}

TextModel::~TextModel() = default;

const ModelSpec& TextModel::spec() const { return impl_->spec; }
std::vector<LayerScores> TextModel::layer_scores() const {
  std::vector<LayerScores> out;
  for (std::size_t i = 0; i < impl_->spec.layers.size(); ++i) {
    out.push_back({impl_->spec.layers[i].attention.softcap, impl_->model.layers[i].sinks});
  }
  return out;
}

KvChoice same_for_all(const ModelSpec& spec, KvFormat format) {
  KvChoice choice;
  for (const LayerSpec& layer : spec.layers) {
    choice.emplace_back(static_cast<std::size_t>(layer.attention.kv_heads), format);
  }
  return choice;
}

KvLayout kv_layout_of(const ModelSpec& spec, const KvChoice& kv) {
  if (kv.size() != spec.layers.size()) {
    throw InvalidRequest("kv: formats of " + std::to_string(kv.size()) + " layers; the model has " +
                         std::to_string(spec.layers.size()));
  }
  KvLayout layout;
  for (std::size_t i = 0; i < kv.size(); ++i) {
    const AttentionSpec& a = spec.layers[i].attention;
    if (static_cast<std::int64_t>(kv[i].size()) != a.kv_heads) {
      throw InvalidRequest("kv: layer " + std::to_string(i) + " has formats of " +
                           std::to_string(kv[i].size()) + " KV heads; the model has " +
                           std::to_string(a.kv_heads));
    }
    const auto padded = checked_round_up<InvalidRequest, std::int64_t>(a.head_dim, 16, "head_dim");
    layout.layers.push_back({padded, a.window, kv[i]});
  }
  return layout;
}

std::int64_t TextModel::original_context() const {
  std::int64_t context = 0;
  for (const RopeSpec& rope : impl_->spec.ropes) {
    if (!rope.short_factors.empty()) context = rope.original_context;
  }
  return context;
}

const KvLayout& TextModel::kv_layout() const { return impl_->layout; }

std::int64_t TextModel::work_bytes() const { return impl_->work.bytes() + impl_->experts.bytes(); }

std::int64_t TextModel::scratch_bytes(std::int64_t rows) const {
  return impl_->scratch_bytes(rows);
}

StepOutcome TextModel::forward(std::span<const StepSpan> spans, const StepControl& control,
                               float* logits_out) {
  return impl_->run(spans, control, logits_out);
}

std::int64_t TextModel::logit_rows(std::span<const StepSpan> spans) {
  std::int64_t rows = 0;
  for (const StepSpan& span : spans) {
    if (span.logits == StepSpan::Logits::last) ++rows;
    if (span.logits == StepSpan::Logits::all) rows += span.count;
  }
  return rows;
}

}  // namespace musespark

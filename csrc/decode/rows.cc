// Which rows the next step has. Everything here is called with the mutex held.
#include <algorithm>
#include <limits>

#include "decode/engine_impl.h"

namespace musespark {

void Engine::Impl::add_span(Entry& entry, std::int64_t count) {
  if (!entry.draft.empty()) {
    const auto rows = static_cast<std::int64_t>(entry.draft.size());
    spans.push_back({&*entry.kv, entry.draft.data(), rows, StepSpan::Logits::all, entry.short_rope,
                     entry.adapter.get(), nullptr, entry.params.given, states_wanted(entry, rows)});
    span_owners.push_back({&entry, entry.id, false});
    return;
  }
  auto wanted = StepSpan::Logits::none;
  if (entry.wants_rows()) {
    if (entry.length() >= entry.params.logits_from && !entry.gives_states()) {
      wanted = StepSpan::Logits::all;
    }
  } else if (count == entry.pending() && (!entry.samples() || entry.stop.limit() > 0)) {
    wanted = StepSpan::Logits::last;
  }
  spans.push_back({&*entry.kv, entry.tokens.data() + entry.length(), count, wanted,
                   entry.short_rope, entry.adapter.get(),
                   entry.evicts() || entry.looks() ? &entry.log : nullptr, entry.params.given,
                   states_wanted(entry, count)});
  span_owners.push_back({&entry, entry.id, false});
}

// What a key costs a row, of what the rest of the row does: by multiplications, of which attention
// does a fourth of a matmul's in the same time (1B shape, prefill of 512 and 2000, Emerald Rapids).
double key_weight(const ModelSpec& spec) {
  double keys = 0, rest = 0;
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& attention = layer.attention;
    const MlpSpec& mlp = layer.mlp;
    const std::int64_t width = mlp.expert_width > 0 ? mlp.expert_width : spec.hidden;
    const std::int64_t values = mlp.kind == MlpKind::dense
                                    ? spec.hidden * mlp.intermediate
                                    : width * mlp.intermediate * mlp.experts_per_token +
                                          spec.hidden * mlp.shared_intermediate;
    keys += static_cast<double>(2 * attention.heads * attention.head_dim);
    rest += static_cast<double>((mlp.gated ? 3 : 2) * values);
    rest += static_cast<double>(2 * spec.hidden * attention.head_dim *
                                (attention.heads + attention.kv_heads));
  }
  return 4 * keys / rest;
}

// Every decode row, and as much prefill as the step may take.
void Engine::Impl::choose_rows() {
  spans.clear();
  span_owners.clear();
  step_rows = {};
  if (drafting) drafting->begin_step();
  for (Entry* entry : running) {
    ask_for_rows(*entry);
    if (entry->pending() != 1 || ready_rows(*entry) != 1) continue;
    make_draft(*entry);
    add_span(*entry, 1);
    step_rows.decode += spans.back().count;
  }
  const bool others =
      std::ranges::any_of(running, [](const Entry* entry) { return entry->pending() > 1; });
  choose_trial_rows();
  if (others) {
    if (spans.empty()) {
      choose_prefill(options.prefill_chunk, std::numeric_limits<double>::infinity());
    } else if (!pace.wants_alone(step_rows.decode)) {
      choose_prefill(std::min(options.prefill_chunk, pace.most_rows()), pace.units());
    }
  }
  stalled = spans.empty() && !running.empty();
}

// Tokens before a position that it attends to, their mean over the layers.
double Engine::Impl::keys_before(std::int64_t position) const {
  double sum = 0;
  for (const LayerSpec& layer : model.spec().layers) {
    const std::int64_t window = layer.attention.window;
    sum += static_cast<double>(window == 0 ? position : std::min(position, window));
  }
  return sum / static_cast<double>(model.spec().layers.size());
}

// Shares the step among the prefilling sequences, those first that have waited longest for rows.
void Engine::Impl::choose_prefill(std::int64_t rows, double units) {
  std::vector<Entry*> order;
  for (Entry* entry : running) {
    if (entry->pending() > 1 && ready_rows(*entry) > 0) order.push_back(entry);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Entry* a, const Entry* b) { return a->last_used < b->last_used; });
  std::int64_t logit_rows = kLogitsRows;  // of those that want logits for each row
  std::vector<PrefillWork> work;
  for (const Entry* entry : order) {
    const std::int64_t silent = std::max<std::int64_t>(
        0, entry->wants_rows() ? entry->params.logits_from - entry->length() : entry->pending());
    const std::int64_t most = std::min(rows_to_next_thought(*entry), ready_rows(*entry));
    const std::int64_t limit = std::min(most, silent > 0 ? silent : logit_rows);
    if (silent == 0) logit_rows -= limit;
    work.push_back({limit, keys_before(entry->length())});
  }
  if (work.empty()) return;
  auto counts = share_prefill(pace, work, rows, units);
  for (std::size_t i = 0; i < order.size(); ++i) counts[i] = whole_spans(*order[i], counts[i]);
  double keys = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (counts[i] == 0) continue;
    keys += static_cast<double>(counts[i]) * keys_before(order[i]->length() + counts[i] / 2);
    step_rows.prefill += counts[i];
    order[i]->last_used = counters.steps + 1;
    add_span(*order[i], counts[i]);
  }
  step_rows.keys = keys / static_cast<double>(std::max<std::int64_t>(step_rows.prefill, 1));
}

}  // namespace musespark

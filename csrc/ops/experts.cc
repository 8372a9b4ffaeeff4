#include "ops/experts.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "base/errors.h"
#include "ops/pool.h"

namespace musespark {
namespace {

constexpr float kLeastSum = 1e-15f;  // added to a sum of scores: all of them may underflow

// The largest key (the lowest index among equals), made not-a-number so that it is not taken again;
// the lowest index not yet taken where only not-a-numbers are left.
std::int32_t take_largest(std::int64_t n, float* keys, std::span<const std::int32_t> taken) {
  float best = -std::numeric_limits<float>::infinity();
  std::int32_t at = -1;
  for (std::int64_t i = 0; i < n; ++i) {
    if (keys[i] > best || (at < 0 && keys[i] == best)) {
      best = keys[i];
      at = static_cast<std::int32_t>(i);
    }
  }
  if (at < 0) {
    at = 0;
    while (std::find(taken.begin(), taken.end(), at) != taken.end()) ++at;
  }
  keys[at] = std::numeric_limits<float>::quiet_NaN();
  return at;
}

// logits -> scores, in place (softmax_chosen: they stay logits until the choice is made).
void score(const KernelTable& kernels, Router::Scores kind, std::int64_t n, float* logits,
           float* scratch) {
  if (kind == Router::Scores::softmax) {
    const float max = kernels.rowwise.row_max(logits, n);
    const float sum = kernels.rowwise.exp_sum(logits, max, n, logits);
    for (std::int64_t i = 0; i < n; ++i) logits[i] /= sum;
  } else if (kind == Router::Scores::sigmoid) {
    std::memcpy(scratch, logits, static_cast<std::size_t>(n) * sizeof(float));
    std::fill(logits, logits + n, 1.0f);
    kernels.rowwise.sigmoid_mul(logits, scratch, n, logits);
  }
}

void weigh(const KernelTable& kernels, const Router& router, const float* scores,
           const std::int32_t* experts, float* weights) {
  const std::int64_t k = router.chosen;
  for (std::int64_t j = 0; j < k; ++j) weights[j] = scores[experts[j]];
  if (router.scores == Router::Scores::softmax_chosen) {
    const float max = kernels.rowwise.row_max(weights, k);
    const float sum = kernels.rowwise.exp_sum(weights, max, k, weights);
    for (std::int64_t j = 0; j < k; ++j) weights[j] /= sum;
  } else if (router.renormalize) {
    float sum = 0;
    for (std::int64_t j = 0; j < k; ++j) sum += weights[j];
    for (std::int64_t j = 0; j < k; ++j) weights[j] /= sum + kLeastSum;
  }
  for (std::int64_t j = 0; j < k; ++j) weights[j] *= router.routed_scale;
}

// One row's, where the form is wanted.
void copy_form(const QuantizedRows& source, const QuantizedRows& target) {
  if (!target.q) return;
  const auto groups = static_cast<std::size_t>(source.cols / kActGroup);
  std::memcpy(target.q, source.q, static_cast<std::size_t>(source.cols));
  std::memcpy(target.scale, source.scale, groups * sizeof(float));
  std::memcpy(target.bias, source.bias, groups * sizeof(std::int32_t));
  std::memcpy(target.half_bias, source.half_bias, 2 * groups * sizeof(std::int32_t));
}

void copy_row(const Rows& from, std::int64_t row, const Rows& to, std::int64_t at) {
  if (to.x) {
    std::memcpy(to.x + at * to.ldx, from.x + row * from.ldx,
                static_cast<std::size_t>(from.cols) * sizeof(float));
  }
  const Rows source = from.slice(row, 1), target = to.slice(at, 1);
  copy_form(source.q64, target.q64);
  copy_form(source.q256, target.q256);
  copy_form(source.q1024, target.q1024);
}

Needs forms_of(const Rows& rows) {
  return {rows.x != nullptr, rows.q64.q != nullptr, rows.q256.q != nullptr,
          rows.q1024.q != nullptr};
}

}  // namespace

void choose_experts(const KernelTable& kernels, const Router& router, std::int64_t n, float* logits,
                    float* keys, std::int32_t* experts, float* weights) {
  if (router.scale != 1.0f) kernels.rowwise.scale(logits, router.scale, n, logits);
  score(kernels, router.scores, n, logits, keys);
  if (router.correction) {
    kernels.rowwise.add(logits, router.correction, n, keys);
  } else {
    std::memcpy(keys, logits, static_cast<std::size_t>(n) * sizeof(float));
  }
  for (std::int64_t j = 0; j < router.chosen; ++j) {
    experts[j] = take_largest(n, keys, {experts, static_cast<std::size_t>(j)});
  }
  std::sort(experts, experts + router.chosen);
  weigh(kernels, router, logits, experts, weights);
}

ExpertsSizes Experts::sizes() const {
  return {.experts = static_cast<std::int64_t>(list.size()),
          .chosen = router.chosen,
          .hidden = hidden,
          .width = width,
          .intermediate = intermediate,
          .shared_intermediate = has_shared() ? shared_intermediate : 0,
          .pooled = pooled(),
          .in_floats = in_needs.floats,
          .down_floats = down_needs.floats,
          .forms = std::max({in_needs.forms(), down_needs.forms(), out_needs.forms(), 1})};
}

void ExpertsRunner::carve(const ExpertsSizes& s, std::int64_t rows, Carver* c) {
  const std::int64_t entries = rows * s.chosen;
  const std::int64_t pooled_rows = s.pooled ? rows : 0;
  const std::int64_t shared_rows = s.shared_intermediate > 0 ? rows : 0;
  logits_ = c->floats(rows, s.experts);
  keys_ = c->floats(rows, s.experts);
  narrow_ = c->floats(pooled_rows, s.width);
  pooled_ = c->rows(pooled_rows, s.width, true, s.forms);
  gathered_ = c->rows(rows > 1 ? entries : 0, s.width, s.in_floats, s.forms);
  inner_ = c->rows(entries, s.intermediate, s.down_floats, s.forms);
  results_ = c->floats(entries, s.width);
  total_ = c->rows(pooled_rows, s.width, true, s.forms);
  shared_inner_ = c->rows(shared_rows, s.shared_intermediate, s.down_floats, s.forms);
  shared_out_ = c->floats(shared_rows, s.hidden);
}

void ExpertsRunner::reserve(const ExpertsSizes& sizes, std::int64_t rows) {
  carve_from(buffer_, [&](Carver* c) { carve(sizes, rows, c); });
  const auto entries = static_cast<std::size_t>(rows * sizes.chosen);
  experts_.resize(entries);
  weights_.resize(entries);
  entry_of_.resize(entries);
  row_of_.resize(entries);
}

std::int64_t ExpertsRunner::bytes() const {
  const std::size_t lists =
      experts_.capacity() * sizeof(experts_[0]) + weights_.capacity() * sizeof(weights_[0]) +
      entry_of_.capacity() * sizeof(entry_of_[0]) + row_of_.capacity() * sizeof(row_of_[0]);
  return static_cast<std::int64_t>(buffer_.size() + lists);
}

std::int64_t ExpertsRunner::bytes_for(const ExpertsSizes& sizes, std::int64_t rows) {
  ExpertsRunner none;
  Carver measure{nullptr};
  none.carve(sizes, rows, &measure);
  const auto entry = static_cast<std::int64_t>(sizeof(none.experts_[0]) + sizeof(none.weights_[0]) +
                                               sizeof(none.entry_of_[0]) + sizeof(none.row_of_[0]));
  return static_cast<std::int64_t>(measure.used) + rows * sizes.chosen * entry;
}

// The router's products, with those of `in` in the same job, and each row's choice.
void ExpertsRunner::route(Jobs& jobs, const KernelTable& kernels, const Experts& e, const Rows& x) {
  const auto n = static_cast<std::int64_t>(e.list.size());
  const std::int64_t ld = RowsBuffer::padded(n), k = e.router.chosen;
  const LinearOutput outputs[] = {{&x, &e.router.matrix, logits_, ld},
                                  {&x, &e.in, narrow_, RowsBuffer::padded(e.width)}};
  linear(jobs, kernels, std::span(outputs).first(e.pooled() ? 2 : 1));
  jobs.run(x.rows, static_cast<double>(n * (k + 2)),
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t row = begin; row < end; ++row) {
               choose_experts(kernels, e.router, n, logits_ + row * ld, keys_ + row * ld,
                              experts_.data() + row * k, weights_.data() + row * k);
             }
           });
}

// Entries by expert, then by row: each expert's matrices see all its rows together.
void ExpertsRunner::group(const Experts& e, std::int64_t rows) {
  const std::int64_t k = e.router.chosen;
  next_.assign(e.list.size() + 1, 0);
  for (const std::int32_t expert : experts_) ++next_[static_cast<std::size_t>(expert) + 1];
  groups_.clear();
  for (std::size_t i = 0; i < e.list.size(); ++i) {
    if (next_[i + 1] > 0) groups_.push_back({static_cast<std::int64_t>(i), next_[i], next_[i + 1]});
    next_[i + 1] += next_[i];
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t j = row * k; j < (row + 1) * k; ++j) {
      const auto at = static_cast<std::size_t>(j);
      entry_of_[at] = next_[static_cast<std::size_t>(experts_[at])]++;
      row_of_[static_cast<std::size_t>(entry_of_[at])] = row;
    }
  }
}

// The entries' input rows, side by side. One job.
Rows ExpertsRunner::gather(Jobs& jobs, const Rows& input) {
  const auto entries = static_cast<std::int64_t>(row_of_.size());
  const Rows out = gathered_.view(entries, input.cols, forms_of(input), false);
  jobs.run(entries, static_cast<double>(input.cols) * 0.2,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t i = begin; i < end; ++i) {
               copy_row(input, row_of_[static_cast<std::size_t>(i)], out, i);
             }
           });
  return out;
}

void ExpertsRunner::gate_and_up(Jobs& jobs, const KernelTable& kernels, const Experts& e,
                                const Rows& x, const Rows& input) {
  Rows read = input;
  if (!e.in_needs.floats) read.x = nullptr;
  if (!e.in_needs.q64) read.q64 = {};
  if (!e.in_needs.q256) read.q256 = {};
  if (!e.in_needs.q1024) read.q1024 = {};
  const bool one_row = input.rows == 1;
  if (!one_row) read = gather(jobs, read);
  const auto entries = static_cast<std::int64_t>(row_of_.size());
  const Rows inner = inner_.view(entries, e.intermediate, e.down_needs, false);
  inputs_.clear();
  inputs_.reserve(groups_.size());  // gated_ points into it
  gated_.clear();
  for (const Group& group : groups_) {
    const Expert& expert = e.list[static_cast<std::size_t>(group.expert)];
    inputs_.push_back(one_row ? read : read.slice(group.first, group.count));
    gated_.push_back({&inputs_.back(), expert.gate_or_null(), &expert.up,
                      inner.slice(group.first, group.count)});
  }
  if (e.has_shared()) {
    gated_.push_back({&x, e.shared.gate_or_null(), &e.shared.up,
                      shared_inner_.view(x.rows, e.shared_intermediate, e.down_needs, false)});
  }
  gated_linear(jobs, kernels, e.gating, gated_);
}

void ExpertsRunner::down(Jobs& jobs, const KernelTable& kernels, const Experts& e) {
  const std::int64_t ld = RowsBuffer::padded(e.width);
  downs_.clear();
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    downs_.push_back({&gated_[i].out, &e.list[static_cast<std::size_t>(groups_[i].expert)].down,
                      results_ + groups_[i].first * ld, ld});
  }
  if (e.has_shared()) {
    downs_.push_back(
        {&gated_.back().out, &e.shared.down, shared_out_, RowsBuffer::padded(e.hidden)});
  }
  linear(jobs, kernels, downs_);
}

// to[row] = the sum over its experts, ascending, of weight * output. One job.
void ExpertsRunner::sum(Jobs& jobs, const KernelTable& kernels, const Experts& e, const Rows& to) {
  const std::int64_t ld = RowsBuffer::padded(e.width), k = e.router.chosen;
  jobs.run(to.rows, static_cast<double>(k * e.width) * 0.2,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t row = begin; row < end; ++row) {
               float* out = to.x + row * to.ldx;
               std::fill(out, out + e.width, 0.0f);
               for (std::int64_t j = row * k; j < (row + 1) * k; ++j) {
                 const auto at = static_cast<std::size_t>(j);
                 float* y = results_ + entry_of_[at] * ld;
                 norm_row(kernels, e.out_norm, y, e.width, y);
                 kernels.rowwise.scale(y, weights_[at], e.width, y);
                 kernels.rowwise.add(out, y, e.width, out);
               }
               to.quantize(kernels, row, out);
             }
           });
}

void ExpertsRunner::add_shared(Jobs& jobs, const KernelTable& kernels, const Experts& e,
                               const Rows& x, float* out) {
  const std::int64_t ld = RowsBuffer::padded(e.hidden);
  jobs.run(x.rows, static_cast<double>(e.hidden) * 0.5,
           [&](std::int64_t begin, std::int64_t end, int) {
             for (std::int64_t row = begin; row < end; ++row) {
               float* y = shared_out_ + row * ld;
               if (e.shared_router) {
                 const float logit = dot(x.x + row * x.ldx, e.shared_router, e.hidden);
                 float share = 1.0f;
                 kernels.rowwise.sigmoid_mul(&share, &logit, 1, &share);
                 kernels.rowwise.scale(y, share, e.hidden, y);
               }
               kernels.rowwise.add(out + row * ld, y, e.hidden, out + row * ld);
             }
           });
}

// What gate and up, and down, of each expert read.
void ExpertsRunner::show(InputTap& tap, std::int64_t layer) const {
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    tap.see(InputOf::expert, layer, groups_[i].expert, *gated_[i].in);
    tap.see(InputOf::expert_down, layer, groups_[i].expert, gated_[i].out);
  }
  if (gated_.size() > groups_.size()) tap.see(InputOf::shared_down, layer, 0, gated_.back().out);
}

void ExpertsRunner::run(Jobs& jobs, const KernelTable& kernels, const Experts& e, const Rows& x,
                        float* out, InputTap* tap, std::int64_t layer) {
  if (x.cols != e.hidden) {
    throw InvalidRequest("[experts] rows of " + std::to_string(x.cols) +
                         " columns into experts of " + std::to_string(e.hidden));
  }
  if (x.rows == 0) return;
  reserve(e.sizes(), x.rows);
  route(jobs, kernels, e, x);
  group(e, x.rows);
  Rows input = x;
  if (e.pooled()) {
    input = pooled_.view(x.rows, e.width, e.in_needs, true);
    norm_rows(jobs, kernels, narrow_, RowsBuffer::padded(e.width), e.in_norm, input);
  }
  gate_and_up(jobs, kernels, e, x, input);
  if (tap) show(*tap, layer);
  down(jobs, kernels, e);
  const std::int64_t ld = RowsBuffer::padded(e.hidden);
  if (e.pooled()) {
    const Rows total = total_.view(x.rows, e.width, e.out_needs, true);
    sum(jobs, kernels, e, total);
    if (tap) tap->see(InputOf::expert_out, layer, 0, total);
    const LinearOutput output{&total, &e.out, out, ld};
    linear(jobs, kernels, std::span(&output, 1));
  } else {
    sum(jobs, kernels, e, {x.rows, e.hidden, out, ld, {}});
  }
  if (e.has_shared()) add_shared(jobs, kernels, e, x, out);
}

}  // namespace musespark

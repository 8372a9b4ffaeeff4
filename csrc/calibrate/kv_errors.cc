#include "calibrate/kv_errors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/math64.h"
#include "formats/kv_page_codec.h"

namespace musespark {
namespace {

constexpr std::int64_t kFirstPage = 2;    // of queries
constexpr std::int64_t kPageQueries = 4;  // positions of a page that are queries
constexpr float kTiny = 1e-30f;           // as quantize_queries of the kernels

// One bit count: keys less their page's mean, means by page, values; [tokens][dim].
struct Rounded {
  std::vector<float> keys, means, values;
};

// What one KV head holds, exact and rounded, in the rotated frame.
struct HeadPages {
  std::int64_t dim;
  std::vector<float> keys, values;
  Rounded eight, four;
};

double dot(const float* a, const float* b, std::int64_t n) {
  double lane[16] = {};
  for (std::int64_t d = 0; d < n; d += 16) {
    for (int l = 0; l < 16; ++l) lane[l] += static_cast<double>(a[d + l]) * b[d + l];
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

void round_pages(const KernelTable& kernels, KvFormat format, std::int64_t pages,
                 const std::vector<float>& keys, const std::vector<float>& values, std::int64_t dim,
                 Rounded* to) {
  AlignedBuffer open(static_cast<std::size_t>(open_page_bytes(format, dim)));
  AlignedBuffer sealed(static_cast<std::size_t>(sealed_page_bytes(format, dim)));
  const auto size = static_cast<std::size_t>(pages * kPageTokens * dim);
  to->keys.resize(size);
  to->values.resize(size);
  to->means.resize(static_cast<std::size_t>(pages * dim));
  for (std::int64_t p = 0; p < pages; ++p) {
    const std::int64_t at = p * kPageTokens * dim;
    for (std::int64_t slot = 0; slot < kPageTokens; ++slot) {
      const std::int64_t row = at + slot * dim;
      kernels.write_token(format, dim, slot, keys.data() + row, values.data() + row,
                          open.as<std::uint8_t>());
    }
    kernels.seal_page(format, dim, open.as<std::uint8_t>(), sealed.as<std::uint8_t>());
    decode_sealed(format, dim, sealed.as<std::uint8_t>(), to->keys.data() + at,
                  to->means.data() + p * dim, to->values.data() + at);
  }
}

// Keys and values of `tokens` positions out of f32 pages, and what their full pages become.
HeadPages read_pages(const KernelTable& kernels, const HeadsSeen& heads, std::int64_t kv_head) {
  const AttentionSpan& span = heads.spans[0];
  const std::int64_t dim = heads.shape.padded_dim, tokens = span.rows;
  HeadPages out{dim, {}, {}, {}, {}};
  out.keys.resize(static_cast<std::size_t>(tokens * dim));
  out.values.resize(out.keys.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto* keys = reinterpret_cast<const float*>(span.pages[t / kPageTokens].open +
                                                      heads.shape.slabs.open_offset +
                                                      kv_head * heads.shape.slabs.open_stride);
    const std::int64_t slot = t % kPageTokens;
    float* key = out.keys.data() + t * dim;
    float* value = out.values.data() + t * dim;
    for (std::int64_t d = 0; d < dim; ++d) key[d] = keys[(slot / 16 * dim + d) * 16 + slot % 16];
    std::copy_n(keys + (kPageTokens + slot) * dim, dim, value);
    kernels.rowwise.rotate(key, dim, 0);
    kernels.rowwise.rotate(value, dim, 0);
  }
  const std::int64_t pages = tokens / kPageTokens;
  round_pages(kernels, KvFormat::kv8, pages, out.keys, out.values, dim, &out.eight);
  round_pages(kernels, KvFormat::kv4, pages, out.keys, out.values, dim, &out.four);
  return out;
}

// A query row, and as sealed keys meet it: code * scale.
struct Query {
  std::vector<float> exact, rounded;
};

Query make_query(const KernelTable& kernels, const float* from, std::int64_t dim) {
  Query q{{from, from + dim}, std::vector<float>(static_cast<std::size_t>(dim))};
  kernels.rowwise.rotate(q.exact.data(), dim, 0);
  float largest = 0;
  for (const float x : q.exact) largest = std::max(largest, std::fabs(x));
  if (!(largest >= kTiny)) return q;
  for (std::size_t d = 0; d < q.exact.size(); ++d) {
    q.rounded[d] = std::nearbyint(q.exact[d] * (127.0f / largest)) * (largest / 127.0f);
  }
  return q;
}

// Attention of one query over positions lo..pos of one head, with exact or rounded keys.
class Weights {
 public:
  Weights(const HeadsSeen& heads, std::int64_t pos, std::int64_t head)
      : softcap_(heads.shape.softcap),
        sink_(heads.sinks ? heads.sinks[head] : -std::numeric_limits<double>::infinity()),
        own_(pos / kPageTokens * kPageTokens),
        lo_(heads.shape.window == 0 ? 0 : std::max<std::int64_t>(0, pos - heads.shape.window + 1)),
        end_(pos + 1) {}

  std::int64_t lo() const { return lo_; }
  std::int64_t end() const { return end_; }
  std::int64_t own() const { return own_; }

  // f(j): the logit of position j before the cap.
  template <class F>
  void score(F f) {
    logits.clear();
    double top = sink_;
    for (std::int64_t j = lo_; j < end_; ++j) {
      double s = f(j);
      if (softcap_ > 0) s = softcap_ * tanh(s / softcap_);
      logits.push_back(s);
      top = s > top || std::isnan(s) ? s : top;
    }
    double sum = math64::exp(sink_ - top);
    weights.clear();
    for (const double s : logits) {
      weights.push_back(math64::exp(s - top));
      sum += weights.back();
    }
    for (double& w : weights) w /= sum;
    log_sum = top + math64::log(sum);
  }

  double log_sum = 0;
  std::vector<double> logits, weights;  // of positions lo..end-1

 private:
  static double tanh(double x) {
    const double e = math64::exp(-2.0 * std::fabs(x));
    return std::copysign((1.0 - e) / (1.0 + e), x);
  }
  double softcap_, sink_;
  std::int64_t own_, lo_, end_;
};

// KL(exact || other) >= 0 but for rounding.
double divergence(const Weights& exact, const Weights& other) {
  double sum = other.log_sum - exact.log_sum;
  for (std::size_t j = 0; j < exact.logits.size(); ++j) {
    sum += exact.weights[j] * (exact.logits[j] - other.logits[j]);
  }
  return std::isnan(sum) ? sum : std::max(sum, 0.0);
}

// value(j): [dim] floats.
template <class F>
std::vector<double> output(const Weights& weights, std::int64_t dim, F value) {
  std::vector<double> out(static_cast<std::size_t>(dim));
  for (std::int64_t j = weights.lo(); j < weights.end(); ++j) {
    const double w = weights.weights[static_cast<std::size_t>(j - weights.lo())];
    const float* v = value(j);
    for (std::int64_t d = 0; d < dim; ++d) out[static_cast<std::size_t>(d)] += w * v[d];
  }
  return out;
}

double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
  return sum;
}

void measure_query(const HeadPages& pages, const HeadsSeen& heads, const Query& q, std::int64_t pos,
                   std::int64_t head, KvError* to) {
  const std::int64_t dim = pages.dim;
  const Weights blank(heads, pos, head);
  const auto sealed = [&](const Rounded& four_or_eight, std::int64_t j) -> const Rounded& {
    return form_of_page(j / kPageTokens) == KvForm::first ? pages.eight : four_or_eight;
  };
  const auto exact_logit = [&](std::int64_t j) {
    return dot(q.exact.data(), pages.keys.data() + j * dim, dim);
  };
  const auto weights_of = [&](const Rounded& rounded) {
    Weights out = blank;
    out.score([&](std::int64_t j) {
      if (j >= blank.own()) return exact_logit(j);
      const Rounded& from = sealed(rounded, j);
      return dot(q.exact.data(), from.means.data() + j / kPageTokens * dim, dim) +
             dot(q.rounded.data(), from.keys.data() + j * dim, dim);
    });
    return out;
  };
  const auto output_of = [&](const Weights& weights, const Rounded& rounded) {
    return output(weights, dim, [&](std::int64_t j) {
      const auto& from = j >= blank.own() ? pages.values : sealed(rounded, j).values;
      return from.data() + j * dim;
    });
  };
  Weights exact = blank;
  exact.score(exact_logit);
  const auto exact_output =
      output(exact, dim, [&](std::int64_t j) { return pages.values.data() + j * dim; });
  const Weights keys8 = weights_of(pages.eight), keys4 = weights_of(pages.four);
  to->queries += 1;
  to->exact += squared_distance(exact_output, std::vector<double>(exact_output.size()));
  for (std::size_t f = 0; f < kMeasuredFormats.size(); ++f) {
    const Weights& weights = has_4bit_keys(kMeasuredFormats[f]) ? keys4 : keys8;
    const Rounded& values = has_4bit_values(kMeasuredFormats[f]) ? pages.four : pages.eight;
    to->divergence[f] += divergence(exact, weights);
    to->error[f] += squared_distance(output_of(weights, values), exact_output);
  }
}

}  // namespace

double mean_divergence(const float* exact, const float* other, std::int64_t rows,
                       std::int64_t cols) {
  const auto log_sum = [cols](const float* x) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::int64_t i = 0; i < cols; ++i) top = std::max<double>(top, x[i]);
    for (std::int64_t i = 0; i < cols; ++i) sum += math64::exp(x[i] - top);
    return top + math64::log(sum);
  };
  double total = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* a = exact + r * cols;
    const float* b = other + r * cols;
    const double sum_a = log_sum(a), sum_b = log_sum(b);
    double divergence = 0;
    for (std::int64_t i = 0; i < cols; ++i) {
      const double p = math64::exp(a[i] - sum_a);
      if (p > 0 || std::isnan(p)) divergence += p * ((a[i] - sum_a) - (b[i] - sum_b));
    }
    total += std::isnan(divergence) ? divergence : std::max(divergence, 0.0);
  }
  return total / static_cast<double>(rows);
}

void KvErrors::see_heads(std::int64_t layer, const HeadsSeen& heads) {
  const AttentionShape& shape = heads.shape;
  auto& errors = heads_[static_cast<std::size_t>(layer)];
  errors.resize(static_cast<std::size_t>(shape.heads));
  if (heads.spans[0].position != 0) return;
  const std::int64_t tokens = heads.spans[0].rows, group = shape.group();
  if (tokens <= kFirstPage * kPageTokens) return;
  const double cost = 40.0 * static_cast<double>(tokens * shape.padded_dim);
  jobs_.run(shape.kv_heads, cost, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t kv_head = begin; kv_head < end; ++kv_head) {
      const HeadPages pages = read_pages(kernels_, heads, kv_head);
      for (std::int64_t pos = kFirstPage * kPageTokens; pos < tokens; ++pos) {
        if (pos % kPageTokens >= kPageQueries) continue;
        for (std::int64_t g = 0; g < group; ++g) {
          const float* row =
              heads.queries + ((kv_head * heads.rows + pos) * group + g) * shape.padded_dim;
          const std::int64_t head = kv_head * group + g;
          measure_query(pages, heads, make_query(kernels_, row, shape.padded_dim), pos, head,
                        &errors[static_cast<std::size_t>(head)]);
        }
      }
    }
  });
}

}  // namespace musespark

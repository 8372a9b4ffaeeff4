#include "model/attention_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/math64.h"
#include "model/page_rows.h"

namespace musespark {
namespace {

double tanh(double x) {
  const double e = math64::exp(-2 * std::abs(x));
  return std::copysign((1 - e) / (1 + e), x);
}

// softmax(cap(scores)) in place; `sink` (null: none) takes a share of it.
void weigh(std::vector<double>& scores, float softcap, const float* sink) {
  double most = sink ? static_cast<double>(*sink) : -std::numeric_limits<double>::infinity();
  for (double& score : scores) {
    if (softcap > 0) score = softcap * tanh(score / softcap);
    most = std::max(most, score);
  }
  double sum = sink ? math64::exp(static_cast<double>(*sink) - most) : 0;
  for (double& score : scores) sum += score = math64::exp(score - most);
  for (double& score : scores) score /= sum;
}

}  // namespace

std::vector<float> attention_weights(const Sequence& sequence, const QueryLog& log,
                                     std::span<const LayerScores> layers,
                                     std::span<const KeySpan> spans, std::int64_t rows,
                                     ThreadPool& threads) {
  const std::vector<PageHead> heads = heads_of(sequence.pool());
  const std::int64_t length = sequence.length();
  std::int64_t keys = 0;
  for (const KeySpan& span : spans) keys += span.count;
  const auto wanted = static_cast<std::size_t>(rows * keys);
  std::vector<double> by_head(heads.size() * wanted);
  threads.run(static_cast<std::int64_t>(heads.size()), [&](std::int64_t item, int) {
    const PageHead& head = heads[static_cast<std::size_t>(item)];
    const LayerScores& layer = layers[static_cast<std::size_t>(head.layer)];
    const std::vector<float> known = load_from(sequence, head, 0, length).k;
    const std::vector<float> queries = last_queries(log, head, length, rows);
    const std::int64_t d = head.head_dim;
    const std::int64_t group = static_cast<std::int64_t>(queries.size()) / (rows * d);
    double* out = by_head.data() + static_cast<std::size_t>(item) * wanted;
    std::vector<double> scores;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t g = 0; g < group; ++g) {
        const float* query = queries.data() + (row * group + g) * d;
        scores.assign(static_cast<std::size_t>(length - rows + row + 1), 0.0);
        for (std::size_t j = 0; j < scores.size(); ++j) {
          const float* key = known.data() + static_cast<std::int64_t>(j) * d;
          float sum = 0;
          for (std::int64_t c = 0; c < d; ++c) sum += query[c] * key[c];
          scores[j] = sum;
        }
        weigh(scores, layer.softcap,
              layer.sinks ? layer.sinks + head.kv_head * group + g : nullptr);
        double* to = out + row * keys;
        for (const KeySpan& span : spans) {
          for (std::int64_t j = span.first; j < span.first + span.count; ++j, ++to) {
            if (j < static_cast<std::int64_t>(scores.size())) {
              *to +=
                  scores[static_cast<std::size_t>(j)] / static_cast<double>(group * head.kv_heads);
            }
          }
        }
      }
    }
  });
  std::vector<float> out;
  for (std::size_t i = 0; i < heads.size(); i += static_cast<std::size_t>(heads[i].kv_heads)) {
    for (std::size_t at = 0; at < wanted; ++at) {
      double sum = 0;
      for (std::int64_t h = 0; h < heads[i].kv_heads; ++h) {
        sum += by_head[(i + static_cast<std::size_t>(h)) * wanted + at];
      }
      out.push_back(static_cast<float>(sum));
    }
  }
  return out;
}

}  // namespace musespark

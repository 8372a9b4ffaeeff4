#include "ops/choose_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "base/errors.h"
#include "base/math64.h"

namespace musespark {
namespace {

constexpr float kImportance = 0.1f;
constexpr float kAlike = 0.5f;
constexpr std::int64_t kAround = 3;  // keys before and after one whose importance it shares
constexpr float kTiny = 1e-8f;       // of a key's length: a key of zeros is like no other

float dot(const float* a, const float* b, std::int64_t d) {
  float lane[16] = {};
  for (std::int64_t at = 0; at < d; at += 16) {
    for (int i = 0; i < 16; ++i) lane[i] += a[at + i] * b[at + i];
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// In place over [0, n); what is not a number weighs nothing.
void softmax(std::vector<float>* x, std::int64_t n) {
  float most = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < n; ++i) most = std::max(most, (*x)[static_cast<std::size_t>(i)]);
  double sum = 0;
  std::vector<double> weights(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double weight = math64::exp(static_cast<double>((*x)[i] - most));
    weights[i] = weight > 0 ? weight : 0;
    sum += weights[i];
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    (*x)[i] = sum > 0 ? static_cast<float>(weights[i] / sum) : 0.0f;
  }
}

std::vector<float> importance(const ChooseRowsArgs& a, std::int64_t n) {
  std::vector<float> mean(static_cast<std::size_t>(n)), scores(static_cast<std::size_t>(n));
  for (std::int64_t q = 0; q < a.queries; ++q) {
    for (std::int64_t j = 0; j < n; ++j) {
      float most = -std::numeric_limits<float>::infinity();
      for (std::int64_t g = 0; g < a.group; ++g) {
        most = std::max(most, dot(a.query + (q * a.group + g) * a.head_dim, a.keys + j * a.head_dim,
                                  a.head_dim));
      }
      scores[static_cast<std::size_t>(j)] = most;
    }
    softmax(&scores, n);
    for (std::size_t j = 0; j < mean.size(); ++j) {
      mean[j] += scores[j] / static_cast<float>(a.queries);
    }
  }
  std::vector<float> out(mean.size());
  for (std::int64_t j = 0; j < n; ++j) {
    const auto first = mean.begin() + std::max<std::int64_t>(0, j - kAround);
    const auto end = mean.begin() + std::min(n, j + kAround + 1);
    out[static_cast<std::size_t>(j)] = *std::max_element(first, end);
  }
  return out;
}

std::vector<float> redundancy(const ChooseRowsArgs& a, std::int64_t n) {
  const std::int64_t d = a.head_dim;
  std::vector<float> unit(static_cast<std::size_t>(a.rows * d));
  for (std::int64_t j = 0; j < a.rows; ++j) {
    const float* key = a.keys + j * d;
    const float length = std::sqrt(dot(key, key, d)) + kTiny;
    for (std::int64_t i = 0; i < d; ++i)
      unit[static_cast<std::size_t>(j * d + i)] = key[i] / length;
  }
  std::vector<float> sum(static_cast<std::size_t>(a.rows)), row(static_cast<std::size_t>(a.rows));
  for (std::int64_t i = 0; i < a.rows; ++i) {
    std::int64_t latest = -1;
    for (std::int64_t j = 0; j < a.rows; ++j) {
      float cosine = i == j ? 0.0f : dot(unit.data() + i * d, unit.data() + j * d, d);
      if (!(cosine > -2.0f)) cosine = 0.0f;  // not a number: like no other
      row[static_cast<std::size_t>(j)] = cosine;
      if (cosine > kAlike) latest = j;
    }
    if (latest >= 0) row[static_cast<std::size_t>(latest)] = 0.0f;
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += row[j];
  }
  for (float& value : sum) value /= static_cast<float>(a.rows);
  softmax(&sum, n);
  return sum;
}

void check(const ChooseRowsArgs& a) {
  const bool good = a.head_dim >= 16 && a.head_dim % 16 == 0 && a.queries >= 1 && a.group >= 1 &&
                    a.queries < a.keep && a.keep < a.rows;
  if (good) return;
  throw InvalidRequest("[choose_rows] " + std::to_string(a.keep) + " of " + std::to_string(a.rows) +
                       " rows of " + std::to_string(a.head_dim) + ", " + std::to_string(a.queries) +
                       " queries of " + std::to_string(a.group) + " heads");
}

}  // namespace

std::vector<std::int32_t> choose_rows(const ChooseRowsArgs& args) {
  check(args);
  const std::int64_t n = args.rows - args.queries;
  const std::vector<float> wanted = importance(args, n), spare = redundancy(args, n);
  std::vector<float> score(static_cast<std::size_t>(n));
  for (std::size_t j = 0; j < score.size(); ++j) {
    score[j] = kImportance * wanted[j] - (1.0f - kImportance) * spare[j];
  }
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(args.rows));
  std::iota(chosen.begin(), chosen.end(), 0);
  const auto last = chosen.begin() + (args.keep - args.queries);
  std::partial_sort(chosen.begin(), last, chosen.begin() + n, [&](std::int32_t a, std::int32_t b) {
    const float x = score[static_cast<std::size_t>(a)], y = score[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::sort(chosen.begin(), last);
  std::iota(last, last + args.queries, static_cast<std::int32_t>(n));
  chosen.resize(static_cast<std::size_t>(args.keep));
  return chosen;
}

}  // namespace musespark

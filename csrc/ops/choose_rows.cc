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

constexpr int kTile = 16;  // rows side by side, so that products of a row with all are vectors

// Rows as [tiles][channels][kTile], the last ones filled up with zeros.
std::vector<float> side_by_side(const float* rows, std::int64_t count, std::int64_t d) {
  const std::int64_t tiles = (count + kTile - 1) / kTile;
  std::vector<float> out(static_cast<std::size_t>(tiles * d * kTile));
  for (std::int64_t j = 0; j < count; ++j) {
    float* to = out.data() + j / kTile * d * kTile + j % kTile;
    for (std::int64_t c = 0; c < d; ++c) to[c * kTile] = rows[j * d + c];
  }
  return out;
}

// products[j] of a row with row j, for all of them and what they were filled up with.
void multiply(const float* row, const std::vector<float>& tiles, std::int64_t d, float* products) {
  const auto count = static_cast<std::int64_t>(tiles.size()) / (d * kTile);
  for (std::int64_t t = 0; t < count; ++t) {
    const float* tile = tiles.data() + t * d * kTile;
    float sum[kTile] = {};
    for (std::int64_t c = 0; c < d; ++c) {
      const float x = row[c];
      for (int i = 0; i < kTile; ++i) sum[i] += x * tile[c * kTile + i];
    }
    for (int i = 0; i < kTile; ++i) products[t * kTile + i] = sum[i];
  }
}

std::size_t filled_up(std::int64_t count) {
  return static_cast<std::size_t>((count + kTile - 1) / kTile * kTile);
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
  const std::vector<float> keys = side_by_side(a.keys, n, a.head_dim);
  std::vector<float> mean(static_cast<std::size_t>(n)), scores(static_cast<std::size_t>(n));
  std::vector<float> products(filled_up(n));
  for (std::int64_t q = 0; q < a.queries; ++q) {
    std::fill(scores.begin(), scores.end(), -std::numeric_limits<float>::infinity());
    for (std::int64_t g = 0; g < a.group; ++g) {
      multiply(a.query + (q * a.group + g) * a.head_dim, keys, a.head_dim, products.data());
      for (std::size_t j = 0; j < scores.size(); ++j) scores[j] = std::max(scores[j], products[j]);
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

// Keys of length 1; zeros where there is no length.
std::vector<float> unit_keys(const ChooseRowsArgs& a) {
  const std::int64_t d = a.head_dim;
  std::vector<float> unit(a.keys, a.keys + a.rows * d);
  for (std::int64_t j = 0; j < a.rows; ++j) {
    float* key = unit.data() + j * d;
    float square = 0;
    for (std::int64_t c = 0; c < d; ++c) square += key[c] * key[c];
    const float length = std::sqrt(square) + kTiny;
    for (std::int64_t c = 0; c < d; ++c) {
      key[c] = square < std::numeric_limits<float>::infinity() ? key[c] / length : 0.0f;
    }
  }
  return unit;
}

std::vector<float> redundancy(const ChooseRowsArgs& a, std::int64_t n) {
  const std::vector<float> unit = unit_keys(a);
  const std::vector<float> tiles = side_by_side(unit.data(), a.rows, a.head_dim);
  std::vector<float> sum(filled_up(a.rows)), cosines(filled_up(a.rows));
  for (std::int64_t i = 0; i < a.rows; ++i) {
    multiply(unit.data() + i * a.head_dim, tiles, a.head_dim, cosines.data());
    cosines[static_cast<std::size_t>(i)] = 0.0f;
    const auto close = std::find_if(cosines.rbegin(), cosines.rend(),
                                    [](float cosine) { return cosine > kAlike; });
    if (close != cosines.rend()) *close = 0.0f;
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += cosines[j];
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

#include "ops/resample_axis.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/errors.h"
#include "base/math64.h"

namespace musespark {
namespace {

constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0.0 ? 1.0 : math64::sin(x * kPi) / (x * kPi); }

double box_filter(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear_filter(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming_filter(double x) {
  x = std::abs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  return sinc(x) * (0.54f + 0.46f * math64::cos(x * kPi));  // Pillow has them as floats
}

double bicubic_filter(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double lanczos_filter(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
  double (*at)(double x);
  double support;  // zero outside [-support, support]
};

Filter filter_of(Resample filter) {
  switch (filter) {
    case Resample::box:
      return {box_filter, 0.5};
    case Resample::bilinear:
      return {bilinear_filter, 1.0};
    case Resample::hamming:
      return {hamming_filter, 1.0};
    case Resample::bicubic:
      return {bicubic_filter, 2.0};
    case Resample::lanczos:
      return {lanczos_filter, 3.0};
    case Resample::nearest:
      break;
  }
  throw Error("[resize] the filter has no weights");
}

std::int32_t fixed_point(double weight) {
  const double scaled = weight * (1 << kResampleBits);
  return static_cast<std::int32_t>(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

}  // namespace

AxisWeights::AxisWeights(Resample filter, std::int64_t length, float begin, float end,
                         std::int64_t size)
    : first_(static_cast<std::size_t>(size)), count_(static_cast<std::size_t>(size)) {
  const Filter kernel = filter_of(filter);
  const double scale = static_cast<double>(end - begin) / static_cast<double>(size);
  const double widened = std::max(scale, 1.0);
  const double support = kernel.support * widened;
  const auto room = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  const std::int64_t stride =
      checked_round_up<InvalidRequest>(room, std::int64_t{kResampleStride}, "[resize] taps");
  const auto cells = static_cast<std::size_t>(
      checked_mul<InvalidRequest>(size, stride, "[resize] outputs * taps"));
  high_.resize(cells);
  low_.resize(cells);
  axis_ = {size, stride, first_.data(), count_.data(), high_.data(), low_.data()};

  const double step = 1.0 / widened;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < size; ++i) {
    const double centre = begin + (static_cast<double>(i) + 0.5) * scale;
    const auto from = std::max(static_cast<std::int64_t>(centre - support + 0.5), std::int64_t{0});
    const auto to = std::min(static_cast<std::int64_t>(centre + support + 0.5), length);
    weights.clear();
    double sum = 0.0;
    for (std::int64_t t = from; t < to; ++t) {
      weights.push_back(kernel.at((static_cast<double>(t) - centre + 0.5) * step));
      sum += weights.back();
    }
    if (sum != 0.0) {
      for (double& weight : weights) weight /= sum;
    }
    first_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(from);
    set_output(i, weights);
  }
}

void AxisWeights::set_output(std::int64_t index, const std::vector<double>& weights) {
  const auto at = static_cast<std::size_t>(index * axis_.stride);
  std::int64_t magnitude = 1 << (kResampleBits - 1);
  for (std::size_t t = 0; t < weights.size(); ++t) {
    const std::int32_t weight = fixed_point(weights[t]);
    low_[at + t] = static_cast<std::int16_t>(weight & 0xffff);
    high_[at + t] = static_cast<std::int16_t>((weight - low_[at + t]) / 65536);
    magnitude += std::int64_t{255} * std::abs(weight);
  }
  if (magnitude > INT32_MAX) throw Error("[resize] weights too large for exact sums");
  count_[static_cast<std::size_t>(index)] = static_cast<std::int32_t>(weights.size());
}

}  // namespace musespark

#include "ops/rope.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/errors.h"
#include "base/math64.h"

namespace musespark {
namespace {

constexpr double kPi = 3.14159265358979323846;

// theta^(2i / dim) in float32: the exponent is a float32 quotient, the power rounded once.
float position_frequency(double theta, std::int64_t i, std::int64_t dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
  return static_cast<float>(math64::pow(theta, static_cast<double>(exponent)));
}

// Long wavelengths are stretched by the factor, short ones kept, those between blended.
float llama3(const RopeFrequencies& s, float inverse) {
  const auto context = static_cast<double>(s.original_context);
  const auto low_wavelength = static_cast<float>(context / s.low_freq_factor);
  const auto high_wavelength = static_cast<float>(context / s.high_freq_factor);
  // A scalar over a tensor is a product with the reciprocal there.
  const float wavelength = 1.0f / inverse * static_cast<float>(2 * kPi);
  const auto factor = static_cast<float>(s.factor);
  if (wavelength > low_wavelength) return inverse / factor;
  if (wavelength < high_wavelength) return inverse;
  const float smooth =
      (1.0f / wavelength * static_cast<float>(context) - static_cast<float>(s.low_freq_factor)) /
      static_cast<float>(s.high_freq_factor - s.low_freq_factor);
  return (1.0f - smooth) * inverse / factor + smooth * inverse;
}

// The dimension that turns `rotations` times over the original context.
double yarn_dimension(const RopeFrequencies& s, double rotations) {
  const auto context = static_cast<double>(s.original_context);
  return static_cast<double>(s.dim) * math64::log(context / (rotations * 2 * kPi)) /
         (2 * math64::log(s.theta));
}

// Largest integer not above x, for |x| < 2^53.
double floor_of(double x) {
  const auto whole = static_cast<double>(static_cast<std::int64_t>(x));
  return whole > x ? whole - 1 : whole;
}

std::vector<float> yarn(const RopeFrequencies& s) {
  const double low = std::max(floor_of(yarn_dimension(s, s.beta_fast)), 0.0);
  double high =
      std::min(-floor_of(-yarn_dimension(s, s.beta_slow)), static_cast<double>(s.dim - 1));
  if (low == high) high += 0.001;
  std::vector<float> inverse;
  for (std::int64_t i = 0; i < s.dim / 2; ++i) {
    const float frequency = position_frequency(s.theta, i, s.dim);
    const float extrapolated = 1.0f / frequency;
    const float interpolated = 1.0f / (static_cast<float>(s.factor) * frequency);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    inverse.push_back(interpolated * (1.0f - keep) + extrapolated * keep);
  }
  return inverse;
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const RopeFrequencies& spec) {
  if (spec.scaling == RopeFrequencies::Scaling::yarn) return yarn(spec);
  std::vector<float> inverse;
  for (std::int64_t i = 0; i < spec.dim / 2; ++i) {
    const float frequency = position_frequency(spec.theta, i, spec.dim);
    if (spec.scaling == RopeFrequencies::Scaling::factors) {
      inverse.push_back(1.0f / (spec.factors[static_cast<std::size_t>(i)] * frequency));
      continue;
    }
    float value = 1.0f / frequency;
    if (spec.scaling == RopeFrequencies::Scaling::linear) value /= static_cast<float>(spec.factor);
    if (spec.scaling == RopeFrequencies::Scaling::llama3) value = llama3(spec, value);
    inverse.push_back(value);
  }
  return inverse;
}

RopeTable::RopeTable(std::vector<float> inverse_frequencies, float attention_factor,
                     std::vector<std::uint8_t> axes)
    : frequencies_(std::move(inverse_frequencies)),
      attention_factor_(attention_factor),
      axes_(std::move(axes)) {}

void RopeTable::at(const RopePlace& place, float* cos_sin) const {
  const std::array<const float*, 3> tables = {cos(place[0]), cos(place[1]), cos(place[2])};
  for (std::int64_t i = 0; i < half(); ++i) {
    const float* table = tables[axes_[static_cast<std::size_t>(i)]];
    cos_sin[i] = table[i];
    cos_sin[half() + i] = table[half() + i];
  }
}

void RopeTable::extend(std::int64_t positions) {
  if (positions > kMaxPositions) {
    throw ContextOverflow("[rope] " + std::to_string(positions) + " positions; at most " +
                              std::to_string(kMaxPositions),
                          positions, kMaxPositions);
  }
  while (static_cast<std::int64_t>(blocks_.size()) * kBlock < positions) {
    const std::int64_t first = static_cast<std::int64_t>(blocks_.size()) * kBlock;
    AlignedBuffer block(static_cast<std::size_t>(kBlock * 2 * half()) * sizeof(float));
    auto* at = block.as<float>();
    for (std::int64_t p = first; p < first + kBlock; ++p) {
      for (std::int64_t i = 0; i < half(); ++i) {
        const float angle = static_cast<float>(p) * frequencies_[static_cast<std::size_t>(i)];
        at[i] = static_cast<float>(math64::cos(static_cast<double>(angle))) * attention_factor_;
        at[half() + i] =
            static_cast<float>(math64::sin(static_cast<double>(angle))) * attention_factor_;
      }
      at += 2 * half();
    }
    blocks_.push_back(std::move(block));
  }
}

}  // namespace musespark

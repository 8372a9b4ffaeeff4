// How many rows of activations the avx2 kernel keeps in a wider form.
#pragma once

#include <cstdint>

namespace musespark {
namespace {

// Activation rows kept as int16 at a time: a second-level cache holds a good part of them, and each
// panel of weights is unpacked once for all of them.
constexpr std::int64_t widened_rows(std::int64_t kp) {
  constexpr std::int64_t kBytes = 1 << 20, kMost = 256, kLeast = 16, kTile = 4;
  const std::int64_t rows = kBytes / (2 * kp) / kTile * kTile;
  return rows > kMost ? kMost : rows < kLeast ? kLeast : rows;
}

}  // namespace
}  // namespace musespark

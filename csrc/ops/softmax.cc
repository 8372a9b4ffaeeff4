#include "ops/softmax.h"

#include <string>

#include "base/errors.h"
#include "kernels/dispatch.h"

namespace musespark {

float row_max(std::span<const float> row) {
  return kernels().rowwise.row_max(row.data(), static_cast<std::int64_t>(row.size()));
}

void exponentials(std::span<const float> row, std::span<float> out) {
  if (row.size() != out.size()) {
    throw InvalidRequest("[exponentials] " + std::to_string(row.size()) + " values into " +
                         std::to_string(out.size()));
  }
  kernels().rowwise.exp_sum(row.data(), 0.0f, static_cast<std::int64_t>(row.size()), out.data());
}

}  // namespace musespark

#include "model/state_log.h"

#include <algorithm>

namespace musespark {

void StateLog::begin(std::int64_t count, std::int64_t hidden) {
  rows.resize((count - skip) * static_cast<std::int64_t>(layers.size()) * hidden);
}

void StateLog::take(std::int64_t layer, const float* x, std::int64_t ldx, std::int64_t count,
                    std::int64_t hidden) {
  const auto width = static_cast<std::int64_t>(layers.size()) * hidden;
  for (std::size_t at = 0; at < layers.size(); ++at) {
    if (layers[at] != layer) continue;
    float* to = rows.data() + static_cast<std::int64_t>(at) * hidden;
    for (std::int64_t r = skip; r < count; ++r, to += width) std::copy_n(x + r * ldx, hidden, to);
  }
}

}  // namespace musespark

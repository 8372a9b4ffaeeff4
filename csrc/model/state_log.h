// What some of a model's layers gave: for a drafter to read (model/drafter.h), or for a request.
#pragma once

#include <cstdint>
#include <vector>

namespace musespark {

// The residual stream after each of the layers, side by side, of a span's rows from `skip` on.
struct StateLog {
  std::vector<std::int64_t> layers;  // none of them the last, which not every row goes through
  std::int64_t skip = 0;             // below the span's rows
  std::vector<float> rows;           // [rows - skip][layers * hidden]

  // Makes room for a span of `count` rows.
  void begin(std::int64_t count, std::int64_t hidden);
  // Takes in, where `layer` is asked for, the span's rows x [count][ldx] after it.
  void take(std::int64_t layer, const float* x, std::int64_t ldx, std::int64_t count,
            std::int64_t hidden);
};

}  // namespace musespark

// How many prefill rows a step may take beside decode rows, from measured times. Results do not
// depend on it: a row's bits are the same however prefill is cut.
#pragma once

#include <algorithm>
#include <cstdint>

namespace musespark {

class PrefillPace {
 public:
  // That prefill may add to a step with decode rows. The promise is 150 ms; measurements lag behind
  // what a step costs (attention grows with the prompt, the machine does other things).
  static constexpr double kAddedSeconds = 0.1;

  void observe(std::int64_t prefill_rows, double seconds) {
    if (prefill_rows == 0) {
      decode_seconds_ = decode_seconds_ == 0 ? seconds : 0.9 * decode_seconds_ + 0.1 * seconds;
    } else if (prefill_rows >= kLeastMeasured) {
      const double row =
          std::max(seconds - decode_seconds_, 0.0) / static_cast<double>(prefill_rows);
      row_seconds_ = row_seconds_ == 0 ? row : 0.5 * row_seconds_ + 0.5 * row;
    }
  }

  std::int64_t rows(std::int64_t most) const {
    if (row_seconds_ == 0) return std::min(most, kUnmeasured);
    const double rows = kAddedSeconds / row_seconds_;
    return rows >= static_cast<double>(most)
               ? most
               : std::max<std::int64_t>(kLeastMeasured, static_cast<std::int64_t>(rows));
  }

 private:
  static constexpr std::int64_t kLeastMeasured = 8;  // fewer say more about the weights' traffic
  static constexpr std::int64_t kUnmeasured = 32;
  double decode_seconds_ = 0;  // of a step without prefill
  double row_seconds_ = 0;     // that one prefill row adds
};

}  // namespace musespark

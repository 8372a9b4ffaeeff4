#include "decode/pace.h"

#include <algorithm>

namespace musespark {
namespace {

// Rows of a step at least, whatever they cost, so that prefill ends. Fewer also say more about the
// weights' traffic than about a row.
constexpr std::int64_t kLeastRows = 4;
// Rows before anything is measured.
constexpr std::int64_t kUnmeasured = 32;
// Rows a prefilling sequence gets at least when several share a step: kernels take 16 at once.
constexpr std::int64_t kLeastShare = 16;
// Steps with prefill between two measurements of decode rows alone: of the same, of others.
constexpr std::int64_t kSameAlone = 32, kOtherAlone = 4;
// What older steps count for the weight of a key.
constexpr double kDecay = 0.97;
// The prior of that weight counts as much as steps whose keys spread by so many.
constexpr double kPriorKeys = 100;
// A unit falls by no more in one step: a measurement may be wrong, and a step too long cannot be
// made good.
constexpr double kFall = 0.8;

}  // namespace

void PrefillPace::observe(const StepRows& rows, double seconds) {
  if (rows.prefill == 0) {
    alone_ = {Alone{rows.decode, seconds}, alone_[0]};
    ++alone_in_row_;
    mixed_since_ = 0;
    return;
  }
  alone_in_row_ = 0;
  ++mixed_since_;
  if (rows.prefill < (rows.decode > 0 ? kLeastRows : kUnmeasured)) return;
  const auto count = static_cast<double>(rows.prefill);
  const double added = std::max(seconds - alone_seconds(rows.decode), 1e-9);
  learn_weight(count, rows.keys, added / count);
  const double units = count * cost(rows.keys);
  const double unit = added / units;
  if (unit_ == 0) {
    unit_ = unit;
    return;
  }
  // The last rows of a prompt say little about a step full of rows.
  const double share = 0.5 * std::min(1.0, units * unit_ / kAddedSeconds);
  unit_ = std::max((1 - share) * unit_ + share * unit, kFall * unit_);
}

bool PrefillPace::wants_alone(std::int64_t decode_rows) const {
  if (alone_in_row_ >= 2) return false;
  const bool known = alone_[0].speaks_for(decode_rows) && alone_[1].speaks_for(decode_rows);
  return known ? mixed_since_ >= kSameAlone : mixed_since_ == 0 || mixed_since_ >= kOtherAlone;
}

double PrefillPace::units() const {
  return unit_ == 0 ? static_cast<double>(kUnmeasured) : kAddedSeconds / unit_;
}

std::int64_t PrefillPace::rows_within(double units, double keys) const {
  const double first = units / cost(keys);
  return first > 1e9 ? std::int64_t{1} << 30
                     : static_cast<std::int64_t>(units / cost(keys + first / 2));
}

// Never more than it is: of fewer rows it is less, and of more rows a part of it is taken.
double PrefillPace::alone_seconds(std::int64_t decode_rows) const {
  double least = 0;
  for (const Alone& alone : alone_) {
    if (alone.rows == 0) continue;
    const double part = std::min(1.0, static_cast<double>(decode_rows) / alone.rows);
    const double seconds = part * alone.seconds;
    least = least == 0 ? seconds : std::min(least, seconds);
    if (!alone_[1].speaks_for(decode_rows)) break;
  }
  return least;
}

void PrefillPace::learn_weight(double rows, double keys, double row_seconds) {
  Sums& s = sums_;
  for (double* sum : {&s.rows, &s.keys, &s.seconds, &s.keys_keys, &s.keys_seconds}) *sum *= kDecay;
  s.rows += rows;
  s.keys += rows * keys;
  s.seconds += rows * row_seconds;
  s.keys_keys += rows * keys * keys;
  s.keys_seconds += rows * keys * row_seconds;

  // The slope of the line, with the prior as further points; then what it is of the line's foot.
  const double level = s.seconds / s.rows, mean = s.keys / s.rows;
  const double spread = s.keys_keys - s.keys * mean, prior = s.rows * kPriorKeys * kPriorKeys;
  const double prior_slope = level * kWeight / (1 + kWeight * mean);
  const double slope = (s.keys_seconds - s.keys * level + prior * prior_slope) / (spread + prior);
  const double foot = std::max(level - slope * mean, 0.1 * level);
  weight_ = std::max(slope, 0.0) / foot;
}

std::vector<std::int64_t> share_prefill(const PrefillPace& pace, std::span<const PrefillWork> work,
                                        std::int64_t rows, double units) {
  const auto sharers = static_cast<std::int64_t>(work.size());
  std::vector<std::int64_t> counts(work.size(), 0);
  const auto give = [&](std::size_t i, std::int64_t most_rows, double most_units, bool first) {
    const double keys = work[i].keys + static_cast<double>(counts[i]);
    std::int64_t count = pace.rows_within(std::min(most_units, units), keys);
    if (first) count = std::max(count, kLeastRows);
    count = std::min({count, most_rows, rows, work[i].limit - counts[i]});
    if (count <= 0) return;
    counts[i] += count;
    rows -= count;
    units -= static_cast<double>(count) * pace.cost(keys + static_cast<double>(count) / 2);
  };
  const std::int64_t share_rows = std::max((rows + sharers - 1) / sharers, kLeastShare);
  const double share_units = units / static_cast<double>(sharers);
  for (std::size_t i = 0; i < work.size(); ++i) {
    // Half a row more, against rounding.
    const double least = (kLeastShare + 0.5) * pace.cost(work[i].keys + kLeastShare / 2);
    give(i, share_rows, std::max(share_units, least), i == 0);
  }
  for (std::size_t i = 0; i < work.size(); ++i) give(i, rows, units, false);
  return counts;
}

}  // namespace musespark

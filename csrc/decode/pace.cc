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
// Steps that measure decode rows alone in a row, at most. After more, for which there was nothing
// to prefill, the first step takes this part: other rows decode now, and another prompt comes.
constexpr std::int64_t kMostAlone = 2;
constexpr double kFirstPart = 0.75;
// A step whose time the last full one foretells takes at most so much of what prefill is to add,
// and so many times its rows.
constexpr double kMostPart = 1.25, kMostGrowth = 4;
// Part of units() from which on a step is full.
constexpr double kFull = 0.8;
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
  const double cost_of_all = count * cost(rows.keys);
  if (rows.decode > 0) {
    const double growth = std::min(kMostPart * kAddedSeconds / added, kMostGrowth);
    const bool full = cost_of_all >= kFull * units() || count >= kFull * most_rows_;
    most_rows_ = full ? count * growth : std::max(most_rows_, count * growth);
  }
  const double unit = added / cost_of_all;
  if (unit_ == 0) {
    unit_ = unit;
    return;
  }
  // The last rows of a prompt say little about a step full of rows.
  const double share = 0.5 * std::min(1.0, cost_of_all * unit_ / kAddedSeconds);
  unit_ = std::max((1 - share) * unit_ + share * unit, kFall * unit_);
}

bool PrefillPace::wants_alone(std::int64_t decode_rows) const {
  if (alone_in_row_ >= kMostAlone) return false;
  const bool known = alone_[0].speaks_for(decode_rows) && alone_[1].speaks_for(decode_rows);
  return known ? mixed_since_ >= kSameAlone : mixed_since_ == 0 || mixed_since_ >= kOtherAlone;
}

double PrefillPace::units() const {
  if (unit_ == 0) return static_cast<double>(kUnmeasured);
  return (alone_in_row_ > kMostAlone ? kFirstPart : 1.0) * kAddedSeconds / unit_;
}

std::int64_t PrefillPace::most_rows() const {
  return most_rows_ == 0 ? kUnmeasured
                         : std::max(static_cast<std::int64_t>(most_rows_), kLeastRows);
}

std::int64_t PrefillPace::rows_within(double units, double keys) const {
  if (units <= 0) return 0;
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

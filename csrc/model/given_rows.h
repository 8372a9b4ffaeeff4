// Rows that stand in a prompt in place of looked-up embeddings: those of an image.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/spec.h"
#include "ops/rope.h"

namespace musespark {

using SharedFloats = std::shared_ptr<const float[]>;

// Consecutive tokens of a sequence whose embeddings are given. They are neither scaled nor normed,
// as those that are looked up may be. Their ids are negative and made from what the rows are: equal
// ids mean equal rows, taps and places, for keys and values are found again by ids alone.
struct GivenRows {
  std::int64_t first = 0, count = 0;  // positions first .. first + count - 1
  SharedFloats rows;                  // [count][hidden]; null: not there yet
  std::vector<SharedFloats> taps;     // [count][hidden] each: taps[i] is added after layer i
  // Rotary positions of the rows along each axis, counted from that of the first; none: one after
  // the other. The token behind them has that of the first + advance, 1 <= advance <= count.
  std::vector<RopePlace> places;
  std::int64_t advance = 0;

  std::int64_t end() const { return first + count; }
};

// What a model can be given; `given` by position. Throws InvalidRequest, naming the field.
void check_given(std::span<const GivenRows> given, const ModelSpec& spec, std::int64_t tokens);

// What a step must know of given rows, by row of the batch. Lists are empty where no row needs
// them.
class StepGiven {
 public:
  explicit StepGiven(const ModelSpec& spec) : spec_(spec) {}

  void clear();
  // The next span of the step: positions first .. first + count - 1 of its sequence.
  void add(std::span<const GivenRows> given, std::int64_t first, std::int64_t count);

  // Pointers to `hidden` floats, null where a row is looked up or has no tap.
  std::span<const float* const> rows() const { return rows_; }
  std::span<const float* const> tap(std::size_t layer) const;
  // From a row on: rotary positions (null: positions do), those of a sequence with given rows; and
  // how many rows behind it a row sees (null: none).
  const RopePlace* places(std::int64_t row) const;
  const std::int32_t* ahead(std::int64_t row) const;

 private:
  void point_at(std::int64_t row, std::int64_t first, std::int64_t count, const GivenRows& span);

  const ModelSpec& spec_;
  std::int64_t count_ = 0;
  std::vector<const float*> rows_;
  std::vector<std::vector<const float*>> taps_;
  std::vector<RopePlace> places_;
  std::vector<std::int32_t> ahead_;
};

}  // namespace musespark

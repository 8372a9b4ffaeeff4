#include "decode/candidates.h"

#include <algorithm>
#include <numeric>

#include "ops/softmax.h"

namespace musespark {
namespace {

// Up to here a heap and one comparison per value beat a selection over an array of all ids.
constexpr std::int64_t kHeapLimit = 256;

}  // namespace

std::span<const std::int32_t> Candidates::largest(std::int64_t count) {
  count = std::min(count, n_);
  if (count > sorted_) {
    if (count == 1) {
      const float max = row_max({values_, static_cast<std::size_t>(n_)});
      order_.assign(1, static_cast<std::int32_t>(std::find(values_, values_ + n_, max) - values_));
      sorted_ = 1;
    } else if (count <= kHeapLimit && count < n_) {
      select_by_heap(count);
    } else {
      extend(count);
    }
  }
  return {order_.data(), static_cast<std::size_t>(sorted_)};
}

void Candidates::select_by_heap(std::int64_t count) {
  const auto less = [this](std::int32_t a, std::int32_t b) { return before(a, b); };
  order_.resize(static_cast<std::size_t>(count));
  std::iota(order_.begin(), order_.end(), 0);
  std::make_heap(order_.begin(), order_.end(), less);  // front: the last of those kept
  float worst = values_[order_.front()];
  for (std::int64_t id = count; id < n_; ++id) {
    if (!(values_[id] > worst))
      continue;  // an equal value with a higher id comes later in the order
    std::pop_heap(order_.begin(), order_.end(), less);
    order_.back() = static_cast<std::int32_t>(id);
    std::push_heap(order_.begin(), order_.end(), less);
    worst = values_[order_.front()];
  }
  std::sort_heap(order_.begin(), order_.end(), less);
  sorted_ = count;
}

void Candidates::extend(std::int64_t count) {
  const auto less = [this](std::int32_t a, std::int32_t b) { return before(a, b); };
  if (static_cast<std::int64_t>(order_.size()) != n_) {  // a heap selection knows only its own part
    order_.resize(static_cast<std::size_t>(n_));
    std::iota(order_.begin(), order_.end(), 0);
    sorted_ = 0;
  }
  if (count < n_) {
    std::nth_element(order_.begin() + sorted_, order_.begin() + count, order_.end(), less);
  }
  std::sort(order_.begin() + sorted_, order_.begin() + count, less);
  sorted_ = count;
}

}  // namespace musespark

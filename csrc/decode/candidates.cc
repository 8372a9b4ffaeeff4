#include "decode/candidates.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "ops/softmax.h"

namespace musespark {
namespace {

// Up to here a heap and one comparison per value beat a look at their leading bits.
constexpr std::int64_t kHeapLimit = 256;

constexpr std::int64_t kShareOfAll = 16;
constexpr int kLeadingShift = 20;  // sign, exponent and three more bits lead
constexpr std::size_t kLeadingValues = 1 << 12;
constexpr int kDigits = 4, kDigitBits = 8;
constexpr std::size_t kDigitValues = 1 << kDigitBits;

// Unsigned integers that ascend as floats descend; both zeros are one.
std::uint32_t descending(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}

std::size_t digit_of(std::uint64_t key, int digit) {
  return key >> (32 + kDigitBits * digit) & (kDigitValues - 1);
}

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
      select_by_radix(count);
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

// By radix: of a flat distribution a draw goes through most ranks, and comparisons through ids take
// longer than the rest of the draw.
void Candidates::select_by_radix(std::int64_t count) {
  if (count > n_ / kShareOfAll) count = n_;  // or all would soon be sorted after most of them
  std::array<std::int64_t, kLeadingValues> leading{};
  for (std::int64_t id = 0; id < n_; ++id) ++leading[descending(values_[id]) >> kLeadingShift];
  std::size_t last = 0;  // of the leading bits that are needed
  for (sorted_ = leading[0]; sorted_ < count; sorted_ += leading[last]) ++last;
  auto& keys = memory_.keys;
  keys.clear();
  keys.reserve(static_cast<std::size_t>(sorted_));
  for (std::int64_t id = 0; id < n_; ++id) {
    const std::uint32_t key = descending(values_[id]);
    if (key >> kLeadingShift <= last) {
      keys.push_back(std::uint64_t{key} << 32 | static_cast<std::uint64_t>(id));
    }
  }
  sort_keys();
  order_.resize(keys.size());
  std::transform(keys.begin(), keys.end(), order_.begin(),
                 [](std::uint64_t key) { return static_cast<std::int32_t>(key); });
}

// Digits of eight bits, the least first; ids ascend where the digits are equal, as they did before.
void Candidates::sort_keys() {
  auto &from = memory_.keys, &to = memory_.other;
  to.resize(from.size());
  std::array<std::array<std::uint32_t, kDigitValues>, kDigits> counts{};
  for (const std::uint64_t key : from) {
    for (int digit = 0; digit < kDigits; ++digit) ++counts[digit][digit_of(key, digit)];
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    auto& at = counts[digit];
    if (at[digit_of(from.front(), digit)] == from.size()) continue;  // all have it
    std::exclusive_scan(at.begin(), at.end(), at.begin(), std::uint32_t{0});
    for (const std::uint64_t key : from) to[at[digit_of(key, digit)]++] = key;
    from.swap(to);
  }
}

}  // namespace musespark

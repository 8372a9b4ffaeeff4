// What must be inlined, and loops that are unrolled from the start.
#pragma once

namespace musespark {
namespace {

#define MS_INLINE static inline __attribute__((always_inline))
#define MS_LAMBDA __attribute__((always_inline))

template <int kValue>
struct Count {
  static constexpr int value = kValue;
  constexpr operator int() const { return kValue; }
};

// f(Count<0>), f(Count<1>), ... Constant from the start, so that arrays of vectors become
// registers; GCC unrolls a loop too late for that.
template <int kCount, class F>
MS_INLINE void unroll(F f) {
  if constexpr (kCount > 0) {
    unroll<kCount - 1>(f);
    f(Count<kCount - 1>{});
  }
}

}  // namespace
}  // namespace musespark

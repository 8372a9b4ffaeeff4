// Error feedback on several rows at once (pack.h): as pack.inl, and after it.
#pragma once

#include <cstdint>

#include "formats/pack.inl"

namespace musespark {
namespace {

// u[k][r] += sum over i in [from, k) ascending of missed[i][r] * factor[i][k], n columns from k.
// Eight columns at a time stay in registers.
MUSESPARK_INLINE void carry_missed(const PackRows& rows, const PackFeedback& feedback,
                                   std::int64_t from, std::int64_t k, int n) {
  constexpr int kAtOnce = 8;
  for (int lane = 0; lane < kRowBlock; lane += kLanes) {
    for (int j = 0; j < n; j += kAtOnce) {
      const int count = n - j < kAtOnce ? n - j : kAtOnce;
      float* u = rows.u + (k + j) * kRowBlock + lane;
      F32 sum[kAtOnce] = {};
      for (int c = 0; c < count; ++c) sum[c] = load(u + c * kRowBlock);
      for (std::int64_t i = from; i < k; ++i) {
        const F32 missed = load(feedback.missed + i * kRowBlock + lane);
        const float* factor = feedback.factor + i * rows.cols + k + j;
        if (count == kAtOnce) {
          for (int c = 0; c < kAtOnce; ++c) sum[c] += missed * factor[c];
        } else {
          for (int c = 0; c < count; ++c) sum[c] += missed * factor[c];
        }
      }
      for (int c = 0; c < count; ++c) store(u + c * kRowBlock, sum[c]);
    }
  }
}

// Column by column: `code` says of t (units of w8) which code it becomes and which w8 that is.
template <class Code>
MUSESPARK_INLINE void feed_columns(const PackRows& rows, const PackFeedback& feedback,
                                   std::int64_t k, int n, int lane, Code code) {
  const std::int64_t block = k / rows.block_cols * kRowBlock + lane;
  const F32 inverse = load(rows.inverse + block), step = load(feedback.step + block);
  for (int i = 0; i < n; ++i) {
    const std::int64_t at = (k + i) * kRowBlock + lane;
    F32 w8;
    store_bytes(rows.codes + at, code(load(rows.u + at) * inverse, &w8));
    const F32 missed = load(feedback.exact + at) - w8 * step;
    store(feedback.missed + at, missed);
    const float* factor = feedback.factor + (k + i) * rows.cols + k;
    for (int j = i + 1; j < n; ++j) {
      float* u = rows.u + (k + j) * kRowBlock + lane;
      store(u, load(u) + missed * factor[j]);
    }
  }
}

template <class Levels>
MUSESPARK_INLINE F32 code_table(F32 t, F32* w8) {
  *w8 = nearest_level<Levels>(t);
  return Levels::code(nearest_index<Levels>(t));
}

// One group of q4 or q6: its sub-scale from what u is before the first of its columns.
template <class Weigh>
MUSESPARK_INLINE void encode_subs_fed(const PackRows& rows, const PackFeedback& feedback,
                                      std::int64_t k, int n, int lane, Weigh weigh) {
  const float* u = rows.u + k * kRowBlock + lane;
  const F32 inverse = load(rows.inverse + k / rows.block_cols * kRowBlock + lane);
  const F32 scale = load(rows.scales + k / kSubGroup * kRowBlock + lane);
  std::int8_t* sub = rows.sub + k / kSubGroup * kRowBlock + lane;
  if (rows.format == WeightFormat::q4) {
    F32 t[kSubGroup];
    for (int i = 0; i < n; ++i) t[i] = load(u + i * kRowBlock) * inverse;
    const Q4Table table = choose_table(t, n, scale, inverse, rows.quick, weigh, sub);
    feed_columns(rows, feedback, k, n, lane, [&](F32 x, F32* w8) {
      const F32 turned = x * table.sign;
      *w8 = table_value(table, turned) * table.sign;
      return table_place(table, turned);
    });
  } else {
    const F32 best = choose_sub_q6(u, n, scale, inverse, rows.quick, weigh, sub);
    const F32 per_code = codes_per_w8(best);
    const I32 s = __builtin_convertvector(best, I32);
    feed_columns(rows, feedback, k, n, lane, [&](F32 x, F32* w8) {
      const F32 code = code_q6(x, per_code);
      *w8 = value_q6(code, s);
      return code;
    });
  }
}

MUSESPARK_INLINE void encode_lane_fed(const PackRows& rows, const PackFeedback& feedback,
                                      std::int64_t k, int n, int lane) {
  switch (rows.format) {
    case WeightFormat::q4:
    case WeightFormat::q6:
      return rows.importance
                 ? encode_subs_fed(rows, feedback, k, n, lane, Weighed{rows.importance + k})
                 : encode_subs_fed(rows, feedback, k, n, lane, Alike{});
    case WeightFormat::q4g32h:
      return feed_columns(rows, feedback, k, n, lane, code_table<Int4Levels>);
    case WeightFormat::iq4g32h:
      return feed_columns(rows, feedback, k, n, lane, code_table<Q4Levels>);
    case WeightFormat::mxfp4:
      return feed_columns(rows, feedback, k, n, lane, code_table<E2m1Levels>);
    default:
      return feed_columns(rows, feedback, k, n, lane,
                          [](F32 t, F32* w8) { return *w8 = code_q8(t); });
  }
}

MUSESPARK_INLINE void encode_group_fed(const PackRows& rows, const PackFeedback& feedback,
                                       std::int64_t k, int n) {
  for (int lane = 0; lane < kRowBlock; lane += kLanes) encode_lane_fed(rows, feedback, k, n, lane);
}

}  // namespace
}  // namespace musespark

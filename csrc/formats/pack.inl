// The arithmetic of packing on several rows at once: a lane is a row, nothing crosses lanes, so
// that the same operations in the same order give the same bits with any vector width. Included
// once per instruction set (pack_scalar.cc and so on). No fma (contraction is off), no libm.
//
// Numbers come as u[column][row]; fit divides every row by its largest magnitude, so that |u| <= 1.
#pragma once

#include <cstdint>

#include "formats/pack_lanes.inl"
#include "formats/pack_moves.inl"
#include "formats/pack_steps.h"
#include "formats/weights.h"

namespace musespark {
namespace {

// ---- tables of levels -------------------------------------------------------------------------

// The levels of a 4-bit format in ascending order, and the code of each.
struct Q4Levels {  // also iq4g32h
  static constexpr int kCount = 16;
  static constexpr float kLargest = 127.0f;
  static constexpr int level(int i) { return kQ4Level[i]; }
  MUSESPARK_INLINE static F32 code(F32 i) { return i; }
};

struct Int4Levels {
  static constexpr int kCount = 16;
  static constexpr float kLargest = 8.0f;
  static constexpr int level(int i) { return kInt4Level[i]; }
  MUSESPARK_INLINE static F32 code(F32 i) { return i; }
};

struct E2m1Levels {
  static constexpr int kCount = 15;
  static constexpr float kLargest = 12.0f;
  static constexpr int level(int i) { return i < 7 ? kE2m1Level[15 - i] : kE2m1Level[i - 7]; }
  MUSESPARK_INLINE static F32 code(F32 i) { return i < 7.0f ? 15.0f - i : i - 7.0f; }
};

// Scales tried, as multiples of (largest magnitude / largest level): the table's long end meets the
// largest number, overshoots it, or clips it.
constexpr float kTableScales[] = {0.76f, 0.82f, 0.88f, 0.93f, 0.97f, 1.0f, 1.03f, 1.07f, 1.12f};
constexpr float kQuickTableScales[] = {0.93f, 1.0f};

// The level nearest to t, t in units of levels; halfway between two the lower, and the lowest for
// what is not a number.
template <class Levels>
MUSESPARK_INLINE F32 nearest_level(F32 t) {
  F32 level = splat(Levels::level(0));
#pragma GCC unroll 15
  for (int i = 1; i < Levels::kCount; ++i) {
    const float border = 0.5f * (Levels::level(i - 1) + Levels::level(i));
    level = t > border ? splat(Levels::level(i)) : level;
  }
  return level;
}

// The table of q4 and the borders between its levels.
struct Q4Borders {
  float level[16] = {}, border[16] = {};
  constexpr Q4Borders() {
    for (int i = 0; i < 16; ++i) level[i] = kQ4Level[i];
    for (int i = 0; i < 15; ++i) border[i] = 0.5f * (level[i] + level[i + 1]);
  }
};
constexpr Q4Borders kQ4;

// The place of the nearest level in ascending order (lane & 15: 0 for what is not a number).
// Fifteen ranges of 14.5, the outer two without end, have one border each, which is the only one to
// compare with. No range ends within 0.2 of a border, so that it does not matter how its number is
// rounded.
MUSESPARK_INLINE I32 nearest_q4(F32 t) {
  const F32 range = clamped((t + 114.25f) * (1.0f / 14.5f), 0.0f, 14.0f);
  const I32 lower = __builtin_convertvector(range, I32);
  return t > look_up(kQ4.border, lower) ? lower + 1 : lower;
}

template <>
MUSESPARK_INLINE F32 nearest_level<Q4Levels>(F32 t) {
  return look_up(kQ4.level, nearest_q4(t));
}

// The same for neighbouring integers, without a comparison for each.
template <>
MUSESPARK_INLINE F32 nearest_level<Int4Levels>(F32 t) {
  F32 level = rounded(t);
  level = level - t == 0.5f ? level - 1.0f : level;
  return smaller(larger(level, splat(-8.0f)), splat(7.0f));
}

// The place of the nearest level in ascending order, 0 for the lowest.
template <class Levels>
MUSESPARK_INLINE F32 nearest_index(F32 t) {
  F32 index = {};
#pragma GCC unroll 15
  for (int i = 1; i < Levels::kCount; ++i) {
    const float border = 0.5f * (Levels::level(i - 1) + Levels::level(i));
    index += t > border ? splat(1.0f) : F32{};
  }
  return index;
}

template <>
MUSESPARK_INLINE F32 nearest_index<Q4Levels>(F32 t) {
  return __builtin_convertvector(nearest_q4(t), F32);
}

template <>
MUSESPARK_INLINE F32 nearest_index<Int4Levels>(F32 t) {
  return nearest_level<Int4Levels>(t) + 8.0f;
}

// Sums that a trial scale gives: of u * level and of level^2, each times the column's importance.
struct Fit {
  F32 dot = {}, square = {};
};

// What counts as importance: an array of it by column, or nothing.
struct Alike {
  MUSESPARK_INLINE F32 operator()(int, F32 v) const { return v; }
};
struct Weighed {
  const float* importance;
  MUSESPARK_INLINE F32 operator()(int k, F32 v) const { return v * importance[k]; }
};

template <class Levels, class Weigh>
MUSESPARK_INLINE Fit fit_levels(const float* u, int n, F32 inverse, Weigh weigh) {
  Fit fit;
  for (int k = 0; k < n; ++k) {
    const F32 x = load(u + k * kRowBlock), level = nearest_level<Levels>(x * inverse);
    const F32 weighed = weigh(k, level);
    fit.dot += x * weighed;
    fit.square += level * weighed;
  }
  return fit;
}

// The scale d of n <= 32 columns with the least sum of (u - d * level)^2, where d is the
// least-squares scale of the levels that a trial scale gives: that error is
// sum u^2 - (sum u*level)^2 / sum level^2. Tried with both signs; where quick with the one that
// takes the largest number to the table's long end.
template <class Levels, class Weigh>
MUSESPARK_INLINE F32 fit_group_table(const float* u, int n, bool quick, Weigh weigh) {
  F32 amax = {}, extreme = {};
  for (int k = 0; k < n; ++k) {
    const F32 x = load(u + k * kRowBlock);
    extreme = magnitude(x) > amax ? x : extreme;
    amax = larger(magnitude(x), amax);
  }
  F32 best_gain = {}, best_scale = {};
  const auto attempt = [&](F32 inverse) {
    const Fit fit = fit_levels<Levels>(u, n, inverse, weigh);
    const F32 scale = fit.dot / fit.square, gain = fit.dot * scale;
    best_scale = gain > best_gain ? scale : best_scale;
    best_gain = gain > best_gain ? gain : best_gain;
  };
  if (quick) {
    for (const float factor : kQuickTableScales) attempt(-Levels::kLargest / (extreme * factor));
    return best_scale;
  }
  for (const float factor : kTableScales) {
    const F32 inverse = Levels::kLargest / (amax * factor);  // inf for all zeros: no gain below
    attempt(inverse);
    attempt(-inverse);
  }
  return best_scale;
}

// Codes of n columns; `inverse` turns them into units of levels.
template <class Levels>
MUSESPARK_INLINE void encode_group_table(const float* u, int n, F32 inverse, std::uint8_t* codes) {
  for (int k = 0; k < n; ++k) {
    const F32 index = nearest_index<Levels>(load(u + k * kRowBlock) * inverse);
    store_bytes(codes + k * kRowBlock, Levels::code(index));
  }
}

// ---- q4 ---------------------------------------------------------------------------------------

// The 16 int8 values of sub-scale `sub`, times its sign so that they ascend, and the 15 borders.
struct Q4Table {
  F32 sign, value[16], border[15];
};

MUSESPARK_INLINE void make_table(F32 sub, Q4Table* table) {
  const I32 s = __builtin_convertvector(sub, I32);
  table->sign = sub < 0.0f ? splat(-1.0f) : splat(1.0f);
  for (int i = 0; i < 16; ++i) {
    const I32 w8 = (s * kQ4Level[i] + 64) >> 7;
    table->value[i] = __builtin_convertvector(w8, F32) * table->sign;
    if (i > 0) table->border[i - 1] = (table->value[i - 1] + table->value[i]) * 0.5f;
  }
}

// The number of borders below x.
MUSESPARK_INLINE F32 table_place(const Q4Table& table, F32 x) {
  I32 place = {};
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i) place = add_if_greater(place, x, table.border[i]);
  return __builtin_convertvector(place, F32);
}

// The value nearest to x.
MUSESPARK_INLINE F32 table_value(const Q4Table& table, F32 x) {
  F32 value = table.value[0];
#pragma GCC unroll 15
  for (int i = 0; i < 15; ++i) value = x > table.border[i] ? table.value[i + 1] : value;
  return value;
}

// Squared error of n columns t (units of w8) under the table.
template <class Weigh>
MUSESPARK_INLINE F32 table_error(const Q4Table& table, const F32* t, int n, Weigh weigh) {
  F32 error = {};
  for (int k = 0; k < n; ++k) {
    const F32 x = t[k] * table.sign, miss = x - table_value(table, x);
    error += weigh(k, miss * miss);
  }
  return error;
}

// The table of the best sub-scale for t (units of w8), which is stored.
template <class Weigh>
MUSESPARK_INLINE Q4Table choose_table(const F32* t, int n, F32 scale, F32 inverse, bool quick,
                                      Weigh weigh, std::int8_t* sub) {
  const F32 middle = rounded(scale * inverse * 128.0f);
  constexpr int kSteps[] = {0, 1, -1, 2, -2};
  F32 best_error = splat(3.0e38f), best_sub = quick ? clamped(middle, -127.0f, 127.0f) : F32{};
  Q4Table table;
  for (const int step : kSteps) {
    if (quick) break;
    const F32 candidate = clamped(middle + static_cast<float>(step), -127.0f, 127.0f);
    make_table(candidate, &table);
    const F32 error = table_error(table, t, n, weigh);
    best_sub = error < best_error ? candidate : best_sub;
    best_error = error < best_error ? error : best_error;
  }
  store_bytes(reinterpret_cast<std::uint8_t*>(sub), best_sub);
  make_table(best_sub, &table);
  return table;
}

template <class Weigh>
MUSESPARK_INLINE void encode_group_q4(const float* u, int n, F32 scale, F32 inverse, bool quick,
                                      Weigh weigh, std::int8_t* sub, std::uint8_t* codes) {
  F32 t[kSubGroup];
  for (int k = 0; k < n; ++k) t[k] = load(u + k * kRowBlock) * inverse;
  const Q4Table table = choose_table(t, n, scale, inverse, quick, weigh, sub);
  for (int k = 0; k < n; ++k) {
    store_bytes(codes + k * kRowBlock, table_place(table, t[k] * table.sign));
  }
}

// ---- q6 ---------------------------------------------------------------------------------------

// Scales tried, as multiples of (largest magnitude / 32).
constexpr float kQ6Scales[] = {0.90f, 0.94f, 0.97f, 1.0f, 1.02f, 1.05f};

template <class Weigh>
MUSESPARK_INLINE F32 fit_group_q6(const float* u, int n, bool quick, Weigh weigh) {
  F32 amax = {};
  for (int k = 0; k < n; ++k) amax = larger(magnitude(load(u + k * kRowBlock)), amax);
  F32 best_gain = {}, best_scale = {};
  const int first = quick ? 3 : 0, end = quick ? 4 : 6;
  for (int trial = first; trial < end; ++trial) {
    const float factor = kQ6Scales[trial];
    const F32 inverse = 32.0f / (amax * factor);
    for (int sign = 0; sign < 2; ++sign) {
      F32 dot = {}, square = {};
      for (int k = 0; k < n; ++k) {
        const F32 x = load(u + k * kRowBlock), t = x * inverse;
        const F32 code = clamped(rounded(sign ? -t : t), -32.0f, 31.0f);
        const F32 weighed = weigh(k, code);
        dot += x * weighed;
        square += code * weighed;
      }
      const F32 scale = dot / square;
      const F32 gain = dot * scale;
      best_scale = gain > best_gain ? scale : best_scale;
      best_gain = gain > best_gain ? gain : best_gain;
    }
  }
  return best_scale;
}

// The code of t, in units of w8, under the sub-scale whose inverse is given.
MUSESPARK_INLINE F32 code_q6(F32 t, F32 per_code) {
  return clamped(rounded(t * per_code), -32.0f, 31.0f);
}

MUSESPARK_INLINE F32 codes_per_w8(F32 sub) { return sub == 0.0f ? F32{} : 32.0f / sub; }

// w8 of a code under a sub-scale.
MUSESPARK_INLINE F32 value_q6(F32 code, I32 sub) {
  return __builtin_convertvector((__builtin_convertvector(code, I32) * sub * 4 + 64) >> 7, F32);
}

// Squared error of n columns under a sub-scale.
template <class Weigh>
MUSESPARK_INLINE F32 error_q6(const float* u, int n, F32 sub, F32 inverse, Weigh weigh) {
  const I32 s = __builtin_convertvector(sub, I32);
  const F32 per_code = codes_per_w8(sub);
  F32 error = {};
  for (int k = 0; k < n; ++k) {
    const F32 t = load(u + k * kRowBlock) * inverse;
    const F32 miss = t - value_q6(code_q6(t, per_code), s);
    error += weigh(k, miss * miss);
  }
  return error;
}

// The best sub-scale, which is stored.
template <class Weigh>
MUSESPARK_INLINE F32 choose_sub_q6(const float* u, int n, F32 scale, F32 inverse, bool quick,
                                   Weigh weigh, std::int8_t* sub) {
  const F32 middle = clamped(rounded(scale * inverse * 32.0f), -127.0f, 127.0f);
  constexpr int kSteps[] = {0, 1, -1};
  F32 best_error = splat(3.0e38f), best_sub = quick ? middle : F32{};
  for (const int step : kSteps) {
    if (quick) break;
    const F32 candidate = clamped(middle + static_cast<float>(step), -127.0f, 127.0f);
    const F32 error = error_q6(u, n, candidate, inverse, weigh);
    best_sub = error < best_error ? candidate : best_sub;
    best_error = error < best_error ? error : best_error;
  }
  store_bytes(reinterpret_cast<std::uint8_t*>(sub), best_sub);
  return best_sub;
}

template <class Weigh>
MUSESPARK_INLINE void encode_group_q6(const float* u, int n, F32 scale, F32 inverse, bool quick,
                                      Weigh weigh, std::int8_t* sub, std::uint8_t* codes) {
  const F32 best = choose_sub_q6(u, n, scale, inverse, quick, weigh, sub);
  const F32 per_code = codes_per_w8(best);
  for (int k = 0; k < n; ++k) {
    store_bytes(codes + k * kRowBlock, code_q6(load(u + k * kRowBlock) * inverse, per_code));
  }
}

// ---- a row block ------------------------------------------------------------------------------

// Columns that get a scale of their own from fit.
MUSESPARK_INLINE std::int64_t group_width(WeightFormat format) {
  return format == WeightFormat::q8         ? kBlockQ8
         : format == WeightFormat::q8g1024h ? kBlockQ8Wide
                                            : kSubGroup;
}

MUSESPARK_INLINE F32 fit_group_bytes(const float* u, int n) {
  F32 amax = {};
  for (int i = 0; i < n; ++i) amax = larger(magnitude(load(u + i * kRowBlock)), amax);
  return amax / 127.0f;
}

MUSESPARK_INLINE F32 code_q8(F32 t) { return clamped(rounded(t), -127.0f, 127.0f); }

// Divides n columns by their rows' largest magnitudes.
MUSESPARK_INLINE void to_unit(const PackRows& rows, std::int64_t k, int n, int lane) {
  float* u = rows.u + k * kRowBlock + lane;
  const F32 by = load(rows.to_unit + lane);
  for (int i = 0; i < n; ++i) store(u + i * kRowBlock, load(u + i * kRowBlock) * by);
}

template <class Weigh>
MUSESPARK_INLINE F32 fit_group_of(const PackRows& rows, const float* u, int n, Weigh weigh) {
  switch (rows.format) {
    case WeightFormat::q4:
    case WeightFormat::iq4g32h:
      return fit_group_table<Q4Levels>(u, n, rows.quick, weigh);
    case WeightFormat::q4g32h:
      return fit_group_table<Int4Levels>(u, n, rows.quick, weigh);
    case WeightFormat::mxfp4:
      return fit_group_table<E2m1Levels>(u, n, rows.quick, weigh);
    case WeightFormat::q6:
      return fit_group_q6(u, n, rows.quick, weigh);
    default:
      return fit_group_bytes(u, n);
  }
}

// Scales of the group of `n` columns at k, rows lane .. lane + kLanes - 1.
MUSESPARK_INLINE void fit_group(const PackRows& rows, std::int64_t k, int n, int lane) {
  const float* u = rows.u + k * kRowBlock + lane;
  store(rows.scales + k / group_width(rows.format) * kRowBlock + lane,
        rows.importance ? fit_group_of(rows, u, n, Weighed{rows.importance + k})
                        : fit_group_of(rows, u, n, Alike{}));
}

MUSESPARK_INLINE void fit_unit_group(const PackRows& rows, std::int64_t k, int n, int lane) {
  to_unit(rows, k, n, lane);
  fit_group(rows, k, n, lane);
}

template <class Weigh>
MUSESPARK_INLINE void encode_group_of(const PackRows& rows, std::int64_t k, int n, int lane,
                                      Weigh weigh) {
  const float* u = rows.u + k * kRowBlock + lane;
  const F32 inverse = load(rows.inverse + k / rows.block_cols * kRowBlock + lane);
  std::uint8_t* codes = rows.codes + k * kRowBlock + lane;
  const float* scale = rows.scales + k / kSubGroup * kRowBlock + lane;  // q4 and q6
  std::int8_t* sub = rows.sub + k / kSubGroup * kRowBlock + lane;
  switch (rows.format) {
    case WeightFormat::q4:
      return encode_group_q4(u, n, load(scale), inverse, rows.quick, weigh, sub, codes);
    case WeightFormat::q6:
      return encode_group_q6(u, n, load(scale), inverse, rows.quick, weigh, sub, codes);
    case WeightFormat::q4g32h:
      return encode_group_table<Int4Levels>(u, n, inverse, codes);
    case WeightFormat::iq4g32h:
      return encode_group_table<Q4Levels>(u, n, inverse, codes);
    case WeightFormat::mxfp4:
      return encode_group_table<E2m1Levels>(u, n, inverse, codes);
    default:
      break;
  }
  for (int i = 0; i < n; ++i) {
    store_bytes(codes + i * kRowBlock, code_q8(load(u + i * kRowBlock) * inverse));
  }
}

MUSESPARK_INLINE void encode_group(const PackRows& rows, std::int64_t k, int n, int lane) {
  if (rows.importance) {
    encode_group_of(rows, k, n, lane, Weighed{rows.importance + k});
  } else {
    encode_group_of(rows, k, n, lane, Alike{});
  }
}

template <void (*kStep)(const PackRows&, std::int64_t, int, int)>
MUSESPARK_INLINE void all_lanes(const PackRows& rows, std::int64_t k, int n) {
  for (int lane = 0; lane < kRowBlock; lane += kLanes) kStep(rows, k, n, lane);
}

template <void (*kStep)(const PackRows&, std::int64_t, int, int)>
MUSESPARK_INLINE void all_groups(const PackRows& rows) {
  const std::int64_t width = group_width(rows.format);
  for (std::int64_t k = 0; k < rows.cols; k += width) {
    const std::int64_t left = rows.cols - k;
    all_lanes<kStep>(rows, k, static_cast<int>(left < width ? left : width));
  }
}

}  // namespace
}  // namespace musespark

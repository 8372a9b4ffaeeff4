// The arithmetic of packing on several rows at once: a lane is a row, nothing crosses lanes, so
// that the same operations in the same order give the same bits with any vector width. Included
// once per instruction set (pack_scalar.cc and so on). No fma (contraction is off), no libm.
//
// Numbers come as u[column][row], every row divided by its largest magnitude, so |u| <= 1.
#pragma once

#include <cstdint>

#include "formats/pack_steps.h"
#include "formats/weights.h"

namespace musespark {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t I32 __attribute__((vector_size(4 * kLanes)));

#define MUSESPARK_INLINE [[gnu::always_inline]] inline

MUSESPARK_INLINE F32 load(const float* p) {
  F32 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

MUSESPARK_INLINE void store(float* p, F32 v) { __builtin_memcpy(p, &v, sizeof v); }

MUSESPARK_INLINE F32 splat(float x) { return F32{} + x; }

MUSESPARK_INLINE F32 magnitude(F32 v) { return (F32)((I32)v & 0x7fffffff); }

MUSESPARK_INLINE F32 larger(F32 a, F32 b) { return a > b ? a : b; }

// Nearest integer, ties to even, for |v| < 2^22.
MUSESPARK_INLINE F32 rounded(F32 v) { return (v + 12582912.0f) - 12582912.0f; }

MUSESPARK_INLINE F32 clamped(F32 v, float low, float high) {
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
}

MUSESPARK_INLINE void store_bytes(std::uint8_t* to, F32 integers) {
  const I32 v = __builtin_convertvector(integers, I32);
  for (int r = 0; r < kLanes; ++r) to[r] = static_cast<std::uint8_t>(v[r]);
}

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

// The same for neighbouring integers, without a comparison for each.
template <>
MUSESPARK_INLINE F32 nearest_level<Int4Levels>(F32 t) {
  F32 level = rounded(t);
  level = level - t == 0.5f ? level - 1.0f : level;
  level = level > -8.0f ? level : splat(-8.0f);
  return level < 7.0f ? level : splat(7.0f);
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
MUSESPARK_INLINE F32 nearest_index<Int4Levels>(F32 t) {
  return nearest_level<Int4Levels>(t) + 8.0f;
}

// Sums that a trial scale gives: of u * level and of level^2.
struct Fit {
  F32 dot = {}, square = {};
};

template <class Levels>
MUSESPARK_INLINE Fit fit_levels(const float* u, int n, F32 inverse) {
  Fit fit;
  for (int k = 0; k < n; ++k) {
    const F32 x = load(u + k * kRowBlock), level = nearest_level<Levels>(x * inverse);
    fit.dot += x * level;
    fit.square += level * level;
  }
  return fit;
}

// The scale d of n <= 32 columns with the least sum of (u - d * level)^2, where d is the
// least-squares scale of the levels that a trial scale gives: that error is
// sum u^2 - (sum u*level)^2 / sum level^2. Tried with both signs; where quick with the one that
// takes the largest number to the table's long end.
template <class Levels>
MUSESPARK_INLINE F32 fit_group_table(const float* u, int n, bool quick) {
  F32 amax = {}, extreme = {};
  for (int k = 0; k < n; ++k) {
    const F32 x = load(u + k * kRowBlock);
    extreme = magnitude(x) > amax ? x : extreme;
    amax = larger(magnitude(x), amax);
  }
  F32 best_gain = {}, best_scale = {};
  const auto attempt = [&](F32 inverse) {
    const Fit fit = fit_levels<Levels>(u, n, inverse);
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

// Squared error of n columns t (units of w8) under the table.
MUSESPARK_INLINE F32 table_error(const Q4Table& table, const F32* t, int n) {
  F32 error = {};
  for (int k = 0; k < n; ++k) {
    const F32 x = t[k] * table.sign;
    F32 value = table.value[0];
#pragma GCC unroll 15
    for (int i = 0; i < 15; ++i) value = x > table.border[i] ? table.value[i + 1] : value;
    const F32 miss = x - value;
    error += miss * miss;
  }
  return error;
}

MUSESPARK_INLINE void encode_group_q4(const float* u, int n, F32 scale, F32 inverse, bool quick,
                                      std::int8_t* sub, std::uint8_t* codes) {
  F32 t[kSubGroup];
  for (int k = 0; k < n; ++k) t[k] = load(u + k * kRowBlock) * inverse;
  const F32 middle = rounded(scale * inverse * 128.0f);
  constexpr int kSteps[] = {0, 1, -1, 2, -2};
  F32 best_error = splat(3.0e38f), best_sub = quick ? clamped(middle, -127.0f, 127.0f) : F32{};
  Q4Table table;
  for (const int step : kSteps) {
    if (quick) break;
    const F32 candidate = clamped(middle + static_cast<float>(step), -127.0f, 127.0f);
    make_table(candidate, &table);
    const F32 error = table_error(table, t, n);
    best_sub = error < best_error ? candidate : best_sub;
    best_error = error < best_error ? error : best_error;
  }
  store_bytes(reinterpret_cast<std::uint8_t*>(sub), best_sub);
  make_table(best_sub, &table);
  for (int k = 0; k < n; ++k) {
    const F32 x = t[k] * table.sign;
    F32 code = {};
#pragma GCC unroll 15
    for (int i = 0; i < 15; ++i) code += x > table.border[i] ? splat(1.0f) : F32{};
    store_bytes(codes + k * kRowBlock, code);
  }
}

// ---- q6 ---------------------------------------------------------------------------------------

// Scales tried, as multiples of (largest magnitude / 32).
constexpr float kQ6Scales[] = {0.90f, 0.94f, 0.97f, 1.0f, 1.02f, 1.05f};

MUSESPARK_INLINE F32 fit_group_q6(const float* u, int n, bool quick) {
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
        dot += x * code;
        square += code * code;
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

// Squared error of n columns under a sub-scale.
MUSESPARK_INLINE F32 error_q6(const float* u, int n, F32 sub, F32 inverse) {
  const I32 s = __builtin_convertvector(sub, I32);
  const F32 per_code = codes_per_w8(sub);
  F32 error = {};
  for (int k = 0; k < n; ++k) {
    const F32 t = load(u + k * kRowBlock) * inverse;
    const I32 w8 = (__builtin_convertvector(code_q6(t, per_code), I32) * s * 4 + 64) >> 7;
    const F32 miss = t - __builtin_convertvector(w8, F32);
    error += miss * miss;
  }
  return error;
}

MUSESPARK_INLINE void encode_group_q6(const float* u, int n, F32 scale, F32 inverse, bool quick,
                                      std::int8_t* sub, std::uint8_t* codes) {
  const F32 middle = clamped(rounded(scale * inverse * 32.0f), -127.0f, 127.0f);
  constexpr int kSteps[] = {0, 1, -1};
  F32 best_error = splat(3.0e38f), best_sub = quick ? middle : F32{};
  for (const int step : kSteps) {
    if (quick) break;
    const F32 candidate = clamped(middle + static_cast<float>(step), -127.0f, 127.0f);
    const F32 error = error_q6(u, n, candidate, inverse);
    best_sub = error < best_error ? candidate : best_sub;
    best_error = error < best_error ? error : best_error;
  }
  const F32 per_code = codes_per_w8(best_sub);
  for (int k = 0; k < n; ++k) {
    store_bytes(codes + k * kRowBlock, code_q6(load(u + k * kRowBlock) * inverse, per_code));
  }
  store_bytes(reinterpret_cast<std::uint8_t*>(sub), best_sub);
}

// ---- a row block ------------------------------------------------------------------------------

// Columns that get a scale of their own from fit.
MUSESPARK_INLINE std::int64_t group_width(WeightFormat format) {
  return format == WeightFormat::q8 ? kBlockQ8 : kSubGroup;
}

MUSESPARK_INLINE F32 fit_group_bytes(const float* u, int n) {
  F32 amax = {};
  for (int i = 0; i < n; ++i) amax = larger(magnitude(load(u + i * kRowBlock)), amax);
  return amax / 127.0f;
}

// Scales of the group of `n` columns at k, rows lane .. lane + kLanes - 1.
MUSESPARK_INLINE void fit_group(const PackRows& rows, std::int64_t k, int n, int lane) {
  const float* u = rows.u + k * kRowBlock + lane;
  F32 scale;
  switch (rows.format) {
    case WeightFormat::q4:
    case WeightFormat::iq4g32h:
      scale = fit_group_table<Q4Levels>(u, n, rows.quick);
      break;
    case WeightFormat::q4g32h:
      scale = fit_group_table<Int4Levels>(u, n, rows.quick);
      break;
    case WeightFormat::mxfp4:
      scale = fit_group_table<E2m1Levels>(u, n, rows.quick);
      break;
    case WeightFormat::q6:
      scale = fit_group_q6(u, n, rows.quick);
      break;
    default:
      scale = fit_group_bytes(u, n);
      break;
  }
  store(rows.scales + k / group_width(rows.format) * kRowBlock + lane, scale);
}

MUSESPARK_INLINE void encode_group(const PackRows& rows, std::int64_t k, int n, int lane) {
  const float* u = rows.u + k * kRowBlock + lane;
  const F32 inverse = load(rows.inverse + k / rows.block_cols * kRowBlock + lane);
  std::uint8_t* codes = rows.codes + k * kRowBlock + lane;
  const float* scale = rows.scales + k / kSubGroup * kRowBlock + lane;  // q4 and q6
  std::int8_t* sub = rows.sub + k / kSubGroup * kRowBlock + lane;
  switch (rows.format) {
    case WeightFormat::q4:
      return encode_group_q4(u, n, load(scale), inverse, rows.quick, sub, codes);
    case WeightFormat::q6:
      return encode_group_q6(u, n, load(scale), inverse, rows.quick, sub, codes);
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
    store_bytes(codes + i * kRowBlock,
                clamped(rounded(load(u + i * kRowBlock) * inverse), -127.0f, 127.0f));
  }
}

template <void (*kStep)(const PackRows&, std::int64_t, int, int)>
MUSESPARK_INLINE void all_groups(const PackRows& rows) {
  const std::int64_t width = group_width(rows.format);
  for (std::int64_t k = 0; k < rows.cols; k += width) {
    const std::int64_t left = rows.cols - k;
    for (int lane = 0; lane < kRowBlock; lane += kLanes) {
      kStep(rows, k, static_cast<int>(left < width ? left : width), lane);
    }
  }
}

// ---- moving numbers ---------------------------------------------------------------------------

MUSESPARK_INLINE void turn_rows(const float* rows, std::int64_t count, float* columns,
                                std::uint32_t* largest) {
  std::uint32_t most[kRowBlock];
  for (int r = 0; r < kRowBlock; ++r) most[r] = largest[r];
  for (std::int64_t k = 0; k < count; ++k) {
    for (int r = 0; r < kRowBlock; ++r) {
      const float value = rows[r * kPackTile + k];
      std::uint32_t bits;
      __builtin_memcpy(&bits, &value, 4);
      bits &= 0x7fffffffu;
      most[r] = bits > most[r] ? bits : most[r];
      columns[k * kRowBlock + r] = value;
    }
  }
  for (int r = 0; r < kRowBlock; ++r) largest[r] = most[r];
}

// A quad's bytes [k][row] to [row][k].
MUSESPARK_INLINE void turn_quad(const std::uint8_t* from, std::uint8_t* to) {
  for (int r = 0; r < kRowBlock; ++r) {
    for (int k = 0; k < 4; ++k) to[r * 4 + k] = from[k * kRowBlock + r];
  }
}

MUSESPARK_INLINE void lay_out_codes(const std::uint8_t* codes, std::int64_t padded_cols, int bits,
                                    std::uint8_t* to) {
  for (std::int64_t chunk = 0; chunk < padded_cols / 64; ++chunk) {
    const std::uint8_t* c = codes + chunk * 64 * kRowBlock;  // quad q at c + 64 * q
    std::uint8_t joined[64];
    for (int v = 0; v < 16 && bits == 8; ++v) turn_quad(c + v * 64, to + v * 64);
    for (int v = 0; v < 8 && bits != 8; ++v) {
      for (int i = 0; i < 64; ++i) {
        joined[i] = static_cast<std::uint8_t>((c[v * 64 + i] & 15) | c[(v + 8) * 64 + i] << 4);
      }
      turn_quad(joined, to + v * 64);
    }
    for (int u = 0; u < 4 && bits == 6; ++u) {
      for (int i = 0; i < 64; ++i) {
        const std::uint8_t* high = c + u * 64 + i;
        joined[i] = static_cast<std::uint8_t>((high[0] >> 4 & 3) | (high[256] >> 4 & 3) << 2 |
                                              (high[512] >> 4 & 3) << 4 | high[768] >> 4 << 6);
      }
      turn_quad(joined, to + 512 + u * 64);
    }
    to += 128 * bits;
  }
}

}  // namespace
}  // namespace musespark

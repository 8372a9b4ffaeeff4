// The sealing of pages over the vector vocabulary; attention/scalar_pages.inl says what it
// computes.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

constexpr std::int64_t kMostGroups = kMostHeadDim / kStepChannels;

MS_INLINE vi magnitude(vf x) { return iand(vbits(x), iset(0x7fffffff)); }

// f16 scales of 16 rows, NaN where the largest magnitude is not finite; gives them back as f32.
MS_INLINE vf store_scales(std::uint8_t* to, vi largest, vf scale) {
  const vm finite = vless(vfloat(largest), vset(__builtin_inff()));
  vstore_f16(to, vselect(finite, scale, vfloat(iset(0x7fc00000))));
  return vload_f16(to);
}

MS_INLINE vf store_8bit_scales(std::uint8_t* to, vi largest) {
  return store_scales(to, largest, vdiv(vfloat(largest), vset(127.0f)));
}

// Codes of 16 values; a scale that is zero or NaN gives 0.
MS_INLINE vi codes_of(vf x, vf scale) {
  const vf q = vmax(vset(-127.0f), vmin(vset(127.0f), vdiv(x, scale)));
  return iselect(vless(vset(0.0f), scale), vround(q), iset(0));
}

// Four vectors of codes as bytes 0..3 of each lane.
MS_INLINE vi interleave(vi c0, vi c1, vi c2, vi c3) {
  const vi byte = iset(255);
  const vi low = ior(iand(c0, byte), ishl<8>(iand(c1, byte)));
  return ior(low, ior(ishl<16>(iand(c2, byte)), ishl<24>(c3)));
}

// Eight vectors of nibbles as four pairs of a lane.
MS_INLINE vi interleave_nibbles(const vi* n) {
  return ior(interleave(n[0], n[1], n[2], n[3]), ishl<4>(interleave(n[4], n[5], n[6], n[7])));
}

// --- 4 bits: steps and scales of 16 rows, a row in each lane ---

struct Fit {
  float inverse[kMostGroups][16];  // 1 / (scale * m); 0 where the row has no scale
  float low[kMostGroups][16];      // the lowest level: -8, or -7 on the positive side
  std::int32_t step[kMostGroups][16];
};

MS_INLINE vi levels_of(vf x, vf inverse, vf low) {
  return vround(vmax(low, vmin(vadd(low, vset(15.0f)), vmul(x, inverse))));
}

MS_INLINE vi nibbles_of(vf x, vf inverse, vf low) {
  const vi nibble = iadd(levels_of(x, inverse, low), vround(vsub(vset(0.0f), low)));
  return iselect(vless(vset(0.0f), inverse), nibble, iset(8));
}

// What the rows share in each step of the fit.
struct FitRows {
  vf base, ratio;  // amax / 58, 8 / amax
  vf num, den;
};

// m and the lowest level of one group: x [channels][16].
void fit_group(const float* x, std::int64_t channels, FitRows* rows, float* m_out, float* low_out) {
  vf highest = vset(0.0f);
  vf lowest = vset(0.0f);
  for (std::int64_t i = 0; i < channels; ++i) {
    highest = vmax(vload(x + 16 * i), highest);
    lowest = vmin(vload(x + 16 * i), lowest);
  }
  lowest = vsub(vset(0.0f), lowest);
  const vf low = vselect(vless(lowest, highest), vset(-7.0f), vset(-8.0f));
  const vf steps = vconvert(vround(vmul(vmax(highest, lowest), rows->ratio)));
  const vf more = vmax(vset(1.0f), vmin(vset(8.0f), steps));
  const vf less = vmax(vset(1.0f), vsub(more, vset(1.0f)));
  const vf t[2] = {vmul(rows->base, less), vmul(rows->base, more)};
  const vf inverse[2] = {vdiv(vset(1.0f), t[0]), vdiv(vset(1.0f), t[1])};
  const vf minus[2] = {vsub(vset(0.0f), t[0]), vsub(vset(0.0f), t[1])};
  vf error[2] = {vset(0.0f), vset(0.0f)};
  for (std::int64_t i = 0; i < channels; ++i) {
    const vf value = vload(x + 16 * i);
    for (int k = 0; k < 2; ++k) {
      const vf r = vfma(minus[k], vconvert(levels_of(value, inverse[k], low)), value);
      error[k] = vfma(r, r, error[k]);
    }
  }
  const vm fewer = vless(error[0], error[1]);
  const vf m = vselect(fewer, less, more);
  const vf chosen = vselect(fewer, inverse[0], inverse[1]);
  for (std::int64_t i = 0; i < channels; ++i) {
    const vf value = vload(x + 16 * i);
    const vf w = vmul(m, vconvert(levels_of(value, chosen, low)));
    rows->num = vfma(value, w, rows->num);
    rows->den = vfma(w, w, rows->den);
  }
  vstore(m_out, m);
  vstore(low_out, low);
}

// x: [dim][16]. Writes the 16 scales.
void fit_rows(const float* x, std::int64_t dim, std::uint8_t* scales, Fit* fit) {
  vi largest = iset(0);
  for (std::int64_t i = 0; i < dim; ++i) largest = imax(largest, magnitude(vload(x + 16 * i)));
  const vf amax = vfloat(largest);
  FitRows rows = {vdiv(amax, vset(58.0f)), vdiv(vset(8.0f), amax), vset(0.0f), vset(0.0f)};
  float m[kMostGroups][16];
  for (std::int64_t d = 0; d < dim; d += kStepChannels) {
    const std::int64_t channels = dim - d < kStepChannels ? dim - d : kStepChannels;
    const std::int64_t g = d / kStepChannels;
    fit_group(x + 16 * d, channels, &rows, m[g], fit->low[g]);
  }
  const vf least = vselect(vless(vset(0.0f), amax), vdiv(rows.num, rows.den), vset(0.0f));
  const vf scale = store_scales(scales, largest, least);
  const vm good = vless(vset(0.0f), scale);
  for (std::int64_t g = 0; g < step_groups(dim); ++g) {
    const vf size = vload(m[g]);
    const vf inverse = vdiv(vset(1.0f), vmul(scale, size));
    const vf side = vadd(vload(fit->low[g]), vset(8.0f));
    const vi step = vround(vadd(vsub(size, vset(1.0f)), vmul(vset(8.0f), side)));
    vstore(fit->inverse[g], vselect(good, inverse, vset(0.0f)));
    istore(fit->step[g], iselect(good, step, iset(0)));
  }
}

// The steps of the page's rows, tokens j and j + 32 to a byte.
void store_steps(const Fit* fit, std::int64_t groups, std::uint8_t* to) {
  for (std::int64_t g = 0; g < groups; ++g) {
    for (int j = 0; j < 32; ++j) {
      const std::int32_t low = fit[j / 16].step[g][j % 16];
      const std::int32_t high = fit[j / 16 + 2].step[g][j % 16];
      to[32 * g + j] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
}

// --- keys ---

// Sixteen keys of a block less their mean, [dim][16].
void centre_keys(std::int64_t dim, const float* keys, const std::uint8_t* mean, std::int64_t b,
                 float* x) {
  for (std::int64_t i = 0; i < dim; i += 16) {
    float means[16];
    vstore(means, vload_f16(mean + 2 * i));
    for (std::int64_t j = i; j < i + 16; ++j) {
      vstore(x + 16 * j, vsub(vload(keys + 16 * (b * dim + j)), vset(means[j - i])));
    }
  }
}

void seal_means(std::int64_t dim, const float* keys, std::uint8_t* to) {
  for (std::int64_t i = 0; i < dim; i += 16) {
    float mean[16];
    for (std::int64_t j = 0; j < 16; ++j) {
      vf lanes = vset(0.0f);
      for (int b = 0; b < 4; ++b) lanes = vadd(lanes, vload(keys + 16 * (b * dim + i + j)));
      mean[j] = vtree_sum(lanes) * (1.0f / kPageTokens);
    }
    vstore_f16(to + 2 * i, vcanonical(vload(mean)));
  }
}

void seal_8bit_keys(const float* x, std::int64_t dim, std::uint8_t* scales, std::uint8_t* codes) {
  vi largest = iset(0);
  for (std::int64_t i = 0; i < dim; ++i) largest = imax(largest, magnitude(vload(x + 16 * i)));
  const vf scale = store_8bit_scales(scales, largest);
  for (std::int64_t i = 0; i < dim; i += 4) {
    vi code[4];
    for (int j = 0; j < 4; ++j) code[j] = codes_of(vload(x + 16 * (i + j)), scale);
    istore(codes + 16 * i, ixor(interleave(code[0], code[1], code[2], code[3]),
                                iset(static_cast<std::int32_t>(0x80808080u))));
  }
}

void seal_4bit_keys(const float* x, std::int64_t dim, std::uint8_t* scales, Fit* fit,
                    std::uint8_t* nibbles) {
  fit_rows(x, dim, scales, fit);
  for (std::int64_t i = 0; i < dim; i += 8) {
    const vf inverse = vload(fit->inverse[i / kStepChannels]);
    const vf low = vload(fit->low[i / kStepChannels]);
    vi nibble[8];
    for (int j = 0; j < 8; ++j) nibble[j] = nibbles_of(vload(x + 16 * (i + j)), inverse, low);
    istore(nibbles + 8 * i, interleave_nibbles(nibble));
  }
}

void seal_keys(KvFormat format, std::int64_t dim, const std::uint8_t* open, std::uint8_t* sealed) {
  const SealedLayout at = sealed_layout(format, dim);
  const auto* keys = reinterpret_cast<const float*>(open);
  seal_means(dim, keys, sealed + at.k_mean);
  float x[kMostHeadDim * 16];
  Fit fit[4];
  for (std::int64_t b = 0; b < 4; ++b) {
    centre_keys(dim, keys, sealed + at.k_mean, b, x);
    std::uint8_t* scales = sealed + at.k_scale + 32 * b;
    if (has_4bit_keys(format)) {
      seal_4bit_keys(x, dim, scales, fit + b, sealed + at.k_codes + 8 * b * dim);
    } else {
      seal_8bit_keys(x, dim, scales, sealed + at.k_codes + 16 * b * dim);
    }
  }
  if (has_4bit_keys(format)) store_steps(fit, step_groups(dim), sealed + at.k_steps);
}

// --- values ---

// Sixteen channels of the value at slot j of an open page.
MS_INLINE vf value_at(const std::uint8_t* open, std::int64_t dim, std::int64_t j, std::int64_t i) {
  return vload_f16(open + open_keys_bytes(dim) + 2 * (j * dim + i));
}

void seal_8bit_values(std::int64_t dim, const std::uint8_t* open, const SealedLayout& at,
                      std::uint8_t* sealed) {
  float scale[kPageTokens];
  for (std::int64_t j = 0; j < kPageTokens; j += 16) {
    std::int32_t largest[16];
    for (std::int64_t t = 0; t < 16; ++t) {
      vi lanes = iset(0);
      for (std::int64_t i = 0; i < dim; i += 16) {
        lanes = imax(lanes, magnitude(value_at(open, dim, j + t, i)));
      }
      largest[t] = itree_max(lanes);
    }
    vstore(scale + j, store_8bit_scales(sealed + at.v_scale + 2 * j, iload(largest)));
  }
  for (std::int64_t j = 0; j < kPageTokens; j += 4) {
    for (std::int64_t i = 0; i < dim; i += 16) {
      vi code[4];
      for (int t = 0; t < 4; ++t) {
        code[t] = codes_of(value_at(open, dim, j + t, i), vset(scale[j + t]));
      }
      istore(sealed + at.v_codes + 4 * (j / 4 * dim + i),
             interleave(code[0], code[1], code[2], code[3]));
    }
  }
}

// Fitted a row to a lane, then coded a channel to a lane, as they are stored.
void seal_4bit_values(std::int64_t dim, const std::uint8_t* open, const SealedLayout& at,
                      std::uint8_t* sealed) {
  float x[kMostHeadDim * 16];
  Fit fit[4];
  for (std::int64_t b = 0; b < 4; ++b) {
    for (std::int64_t t = 0; t < 16; ++t) {
      for (std::int64_t i = 0; i < dim; i += 16) {
        float lanes[16];
        vstore(lanes, value_at(open, dim, 16 * b + t, i));
        for (int j = 0; j < 16; ++j) x[16 * (i + j) + t] = lanes[j];
      }
    }
    fit_rows(x, dim, sealed + at.v_scale + 32 * b, fit + b);
  }
  store_steps(fit, step_groups(dim), sealed + at.v_steps);
  for (std::int64_t j = 0; j < kPageTokens; j += 8) {
    for (std::int64_t i = 0; i < dim; i += 16) {
      const std::int64_t g = i / kStepChannels;
      vi nibble[8];
      for (int t = 0; t < 8; ++t) {
        const Fit& row = fit[j / 16];
        nibble[t] = nibbles_of(value_at(open, dim, j + t, i), vset(row.inverse[g][j % 16 + t]),
                               vset(row.low[g][j % 16 + t]));
      }
      istore(sealed + at.v_codes + 4 * (j / 8 * dim + i), interleave_nibbles(nibble));
    }
  }
}

void seal_rows(KvFormat format, std::int64_t dim, const std::uint8_t* open, std::uint8_t* sealed) {
  const SealedLayout at = sealed_layout(format, dim);
  for (std::int64_t i = at.v_scale + 2 * kPageTokens; i < at.bytes; ++i) sealed[i] = 0;
  seal_keys(format, dim, open, sealed);
  if (has_4bit_values(format)) {
    seal_4bit_values(dim, open, at, sealed);
  } else {
    seal_8bit_values(dim, open, at, sealed);
  }
}

}  // namespace
}  // namespace musespark

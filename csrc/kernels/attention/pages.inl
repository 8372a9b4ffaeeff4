// Merge, finish, and the writing and sealing of pages, over the vector vocabulary;
// attention/scalar.cc says what they compute.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/detail/math.inl"

namespace musespark {
namespace {

MS_INLINE bool is_empty(const AttentionPartial& p) {
  return p.max == -__builtin_inff() && p.sum == 0.0f;
}

void merge_rows(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                const AttentionPartial* other, const float* other_o) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (is_empty(other[r])) continue;
    float* mine = o + r * d;
    const float* theirs = other_o + r * d;
    if (is_empty(state[r])) {
      state[r] = other[r];
      for (std::int64_t i = 0; i < d; i += 16) vstore(mine + i, vload(theirs + i));
      continue;
    }
    const float m = state[r].max > other[r].max ? state[r].max : other[r].max;
    const vf a = vexp(vset(state[r].max - m));
    const vf b = vexp(vset(other[r].max - m));
    float sum[16];
    vstore(sum, vcanonical(vfma(vset(state[r].sum), a, vmul(vset(other[r].sum), b))));
    state[r] = {m, sum[0]};
    for (std::int64_t i = 0; i < d; i += 16) {
      vstore(mine + i, vcanonical(vfma(vload(mine + i), a, vmul(vload(theirs + i), b))));
    }
  }
}

void finish_rows(std::int64_t rows, std::int64_t d, const AttentionPartial* state, const float* o,
                 const float* sink, float* out, std::int64_t ldo, std::int64_t head_dim_out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const bool empty = is_empty(state[r]);
    vf a = vset(1.0f);
    vf sum = vset(state[r].sum);
    if (sink) {
      const float m = state[r].max > sink[r] ? state[r].max : sink[r];
      a = vexp(vset(state[r].max - m));
      sum = vfma(sum, a, vexp(vset(sink[r] - m)));
    }
    for (std::int64_t i = 0; i < head_dim_out; i += 16) {
      const std::int64_t count = head_dim_out - i < 16 ? head_dim_out - i : 16;
      const vf y = vdiv(vmul(vload(o + r * d + i), a), sum);
      vstore_n(out + r * ldo + i, empty ? vset(0.0f) : vcanonical(y), count);
    }
  }
}

MS_INLINE vf clamp_f16(vf x) { return vcanonical(vmax(vset(-65504.0f), vmin(vset(65504.0f), x))); }

// Sixteen elements of `size` bytes each to every sixteenth place: one token's keys in a token
// block.
MS_INLINE void scatter(const void* from, int size, std::uint8_t* to) {
  const auto* bytes = static_cast<const std::uint8_t*>(from);
  for (int i = 0; i < 16; ++i) __builtin_memcpy(to + i * 16 * size, bytes + i * size, size);
}

void write_slot(KvFormat format, std::int64_t d, std::int64_t slot, const float* k, const float* v,
                std::uint8_t* open) {
  const std::int64_t key_at = slot / 16 * d * 16 + slot % 16;
  const std::int64_t value_at = kPageTokens * d + slot * d;
  for (std::int64_t i = 0; i < d; i += 16) {
    if (format == KvFormat::f32) {
      scatter(k + i, 4, open + 4 * (key_at + 16 * i));
      vstore(reinterpret_cast<float*>(open + 4 * (value_at + i)), vload(v + i));
    } else {
      std::uint8_t half[32];
      vstore_f16(half, clamp_f16(vload(k + i)));
      scatter(half, 2, open + 2 * (key_at + 16 * i));
      vstore_f16(open + 2 * (value_at + i), clamp_f16(vload(v + i)));
    }
  }
}

// f16 scales of 16 rows from the bits of their largest magnitudes; gives them back as f32.
MS_INLINE vf store_scales(std::uint8_t* to, vi largest) {
  const vf scale = vdiv(vfloat(largest), vset(127.0f));
  const vm finite = vless(vfloat(largest), vset(__builtin_inff()));
  const vf value = vselect(finite, scale, vfloat(iset(0x7fc00000)));
  vstore_f16(to, value);
  return vload_f16(to);
}

MS_INLINE vi magnitude(vf x) { return iand(vbits(x), iset(0x7fffffff)); }

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

void seal_keys(std::int64_t d, const std::uint8_t* open, std::uint8_t* sealed) {
  const SealedKv8Layout at = sealed_kv8_layout(d);
  const auto key = [&](int b, std::int64_t i) { return vload_f16(open + 2 * 16 * (b * d + i)); };
  float mean[16];
  for (std::int64_t i = 0; i < d; i += 16) {
    for (std::int64_t j = 0; j < 16; ++j) {
      vf lanes = vset(0.0f);
      for (int b = 0; b < 4; ++b) lanes = vadd(lanes, key(b, i + j));
      mean[j] = vtree_sum(lanes) * (1.0f / kPageTokens);
    }
    vstore_f16(sealed + at.k_mean + 2 * i, vcanonical(vload(mean)));
  }
  float means[512];
  for (std::int64_t i = 0; i < d; i += 16) {
    vstore(means + i, vload_f16(sealed + at.k_mean + 2 * i));
  }
  for (int b = 0; b < 4; ++b) {
    vi largest = iset(0);
    for (std::int64_t i = 0; i < d; ++i) {
      largest = imax(largest, magnitude(vsub(key(b, i), vset(means[i]))));
    }
    const vf scale = store_scales(sealed + at.k_scale + 32 * b, largest);
    for (std::int64_t i = 0; i < d; i += 4) {
      vi code[4];
      for (int j = 0; j < 4; ++j) {
        code[j] = codes_of(vsub(key(b, i + j), vset(means[i + j])), scale);
      }
      const vi bytes = interleave(code[0], code[1], code[2], code[3]);
      istore(sealed + at.k_codes + 16 * (b * d + i),
             ixor(bytes, iset(static_cast<std::int32_t>(0x80808080u))));
    }
  }
}

void seal_values(std::int64_t d, const std::uint8_t* open, std::uint8_t* sealed) {
  const SealedKv8Layout at = sealed_kv8_layout(d);
  const auto value = [&](std::int64_t j, std::int64_t i) {
    return vload_f16(open + 2 * ((kPageTokens + j) * d + i));
  };
  float scale[kPageTokens];
  for (std::int64_t j = 0; j < kPageTokens; j += 16) {
    std::int32_t largest[16];
    for (std::int64_t t = 0; t < 16; ++t) {
      vi lanes = iset(0);
      for (std::int64_t i = 0; i < d; i += 16) lanes = imax(lanes, magnitude(value(j + t, i)));
      largest[t] = itree_max(lanes);
    }
    vstore(scale + j, store_scales(sealed + at.v_scale + 2 * j, iload(largest)));
  }
  for (std::int64_t j = 0; j < kPageTokens; j += 4) {
    for (std::int64_t i = 0; i < d; i += 16) {
      vi code[4];
      for (int t = 0; t < 4; ++t) code[t] = codes_of(value(j + t, i), vset(scale[j + t]));
      istore(sealed + at.v_codes + 4 * (j / 4 * d + i),
             interleave(code[0], code[1], code[2], code[3]));
    }
  }
}

void seal_rows(std::int64_t d, const std::uint8_t* open, std::uint8_t* sealed) {
  const SealedKv8Layout at = sealed_kv8_layout(d);
  for (std::int64_t i = at.v_scale + 2 * kPageTokens; i < at.bytes; ++i) sealed[i] = 0;
  seal_keys(d, open, sealed);
  seal_values(d, open, sealed);
}

}  // namespace
}  // namespace musespark

// Merge, finish, and the writing of open pages, over the vector vocabulary;
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

}  // namespace
}  // namespace musespark

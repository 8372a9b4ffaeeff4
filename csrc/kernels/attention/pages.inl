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

// Sixteen floats to every sixteenth place: one token's keys in a token block.
MS_INLINE void scatter(vf keys, float* to) {
  float lanes[16];
  vstore(lanes, keys);
  for (int i = 0; i < 16; ++i) to[16 * i] = lanes[i];
}

void write_slot(KvFormat format, std::int64_t d, std::int64_t slot, const float* k, const float* v,
                std::uint8_t* open) {
  float* keys = reinterpret_cast<float*>(open) + slot / 16 * d * 16 + slot % 16;
  std::uint8_t* values = open + open_keys_bytes(d);
  for (std::int64_t i = 0; i < d; i += 16) {
    if (format == KvFormat::f32) {
      scatter(vload(k + i), keys + 16 * i);
      vstore(reinterpret_cast<float*>(values) + slot * d + i, vload(v + i));
    } else {
      scatter(clamp_f16(vload(k + i)), keys + 16 * i);
      vstore_f16(values + 2 * (slot * d + i), clamp_f16(vload(v + i)));
    }
  }
}

}  // namespace
}  // namespace musespark

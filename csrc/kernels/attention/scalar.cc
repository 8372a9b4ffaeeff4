// The specification of the attention kernels: one query row, one position after another.
#include <cstdint>

#include "base/half.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/scalar_pages.inl"
#include "kernels/entries.h"

namespace musespark {
namespace {

constexpr float kTiny = 1e-30f;

// One row's query as sealed pages want it: int8 with a scale.
struct QuantizedQuery {
  std::int8_t code[kMostHeadDim];
  float scale;
};

void quantize_query(const float* q, std::int64_t dim, QuantizedQuery* out) {
  const std::uint32_t largest = largest_magnitude(q, dim);
  const float amax = float_of(largest);
  const bool finite = largest < kInfinityBits;
  const bool zero = !finite || amax < kTiny;
  out->scale = !finite ? float_of(0x7fc00000u) : zero ? 0.0f : amax / 127.0f;
  const float inverse = 127.0f / amax;
  for (std::int64_t d = 0; d < dim; ++d) {
    const float x = max_of(-127.0f, min_of(127.0f, q[d] * inverse));
    out->code[d] = zero ? std::int8_t{0} : static_cast<std::int8_t>(round_to_int(x));
  }
}

float open_score(const AttendChunkArgs& a, const float* q, const std::uint8_t* page,
                 std::int64_t slot) {
  float s = 0.0f;
  for (std::int64_t d = 0; d < a.head_dim; ++d) {
    s = fma(q[d], open_key(page, a.head_dim, slot, d), s);
  }
  return s;
}

float sealed_score(const AttendChunkArgs& a, KvFormat format, const float* q,
                   const QuantizedQuery& qq, const std::uint8_t* page, std::int64_t slot) {
  const SealedLayout at = sealed_layout(format, a.head_dim);
  float u = 0.0f;
  std::int32_t dot = 0;
  for (std::int64_t d = 0; d < a.head_dim; ++d) {
    u = fma(q[d], load_f16(page + at.k_mean + 2 * d), u);
    dot += qq.code[d] * key_code(format, page, a.head_dim, slot, d);
  }
  const float scale = load_f16(page + at.k_scale + 2 * slot);
  return fma(static_cast<float>(dot), qq.scale * scale, u);
}

// Adds one open page's share of the output; slots [first, last], p[slot] = exp(s - m).
void add_open_values(const AttendChunkArgs& a, KvFormat format, const std::uint8_t* page,
                     std::int64_t first, std::int64_t last, const float* p, float* o) {
  for (std::int64_t slot = first; slot <= last; ++slot) {
    for (std::int64_t d = 0; d < a.head_dim; ++d) {
      o[d] = fma(p[slot], open_value(format, page, a.head_dim, slot, d), o[d]);
    }
  }
}

void add_sealed_values(const AttendChunkArgs& a, KvFormat format, const std::uint8_t* page,
                       bool first_page, std::int64_t first, std::int64_t last, const float* p,
                       float* o) {
  const SealedLayout at = sealed_layout(format, a.head_dim);
  float w[kPageTokens];
  std::uint32_t largest = 0;
  for (std::int64_t slot = first; slot <= last; ++slot) {
    w[slot] = p[slot] * abs_of(load_f16(page + at.v_scale + 2 * slot));
    if (magnitude_bits(w[slot]) > largest) largest = magnitude_bits(w[slot]);
  }
  const float wmax = float_of(largest);
  if (largest >= kInfinityBits) {
    for (std::int64_t d = 0; d < a.head_dim; ++d) o[d] = float_of(0x7fc00000u);
    return;
  }
  if (wmax < kTiny) return;
  const float steps = first_page ? 65535.0f : 255.0f;
  const float inverse = steps / wmax;
  const float step = wmax / steps;
  std::int32_t weight[kPageTokens];
  for (std::int64_t slot = first; slot <= last; ++slot) {
    weight[slot] = round_to_int(w[slot] * inverse);
  }
  for (std::int64_t d = 0; d < a.head_dim; ++d) {
    std::int32_t sum = 0;
    for (std::int64_t slot = first; slot <= last; ++slot) {
      sum += weight[slot] * value_code(format, page, a.head_dim, slot, d);
    }
    o[d] = fma(static_cast<float>(sum), step, o[d]);
  }
}

void attend_row(const AttendChunkArgs& a, std::int64_t r) {
  const float* q = a.q + r * a.ldq;
  float* o = a.o + r * a.head_dim;
  for (std::int64_t d = 0; d < a.head_dim; ++d) o[d] = 0.0f;
  a.partial[r] = {-__builtin_inff(), 0.0f};
  const std::int64_t base = a.chunk * kMergeChunk;
  const std::int64_t first = (a.lo[r] > base ? a.lo[r] : base) - base;
  const std::int64_t last =
      (a.hi[r] < base + kMergeChunk - 1 ? a.hi[r] : base + kMergeChunk - 1) - base;
  if (first > last) return;
  // Pages before the row's own are sealed. (Page indices count from the chunk's first.)
  const std::int64_t own = a.pos[r] / kPageTokens - a.chunk * kPagesPerChunk;
  const std::int64_t sealed_end = a.sealed ? own : 0;

  QuantizedQuery qq;
  quantize_query(q, a.head_dim, &qq);
  float p[kMergeChunk];
  float lane[16];
  for (float& l : lane) l = -__builtin_inff();
  for (std::int64_t j = first; j <= last; ++j) {
    const std::int64_t page = j / kPageTokens;
    float s = page < sealed_end
                  ? sealed_score(a, a.formats[page], q, qq, a.sealed[page], j % kPageTokens)
                  : open_score(a, q, a.open[page], j % kPageTokens);
    if (a.softcap > 0.0f) s = a.softcap * tanh_of(s / a.softcap);
    p[j] = s;
    lane[j % 16] = max_of(s, lane[j % 16]);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = max_of(lane[i + half], lane[i]);
  }
  const float m = lane[0];
  for (float& l : lane) l = 0.0f;
  for (std::int64_t j = first; j <= last; ++j) {
    p[j] = exp_of(p[j] - m);
    lane[j % 16] += p[j];
  }
  a.partial[r] = {m, canonical(tree_sum(lane))};

  for (std::int64_t page = first / kPageTokens; page <= last / kPageTokens; ++page) {
    const std::int64_t begin = page * kPageTokens;
    const std::int64_t from = first > begin ? first - begin : 0;
    const std::int64_t to = last - begin < kPageTokens - 1 ? last - begin : kPageTokens - 1;
    if (page < sealed_end) {
      const bool first_page = a.chunk == 0 && page == 0;
      add_sealed_values(a, a.formats[page], a.sealed[page], first_page, from, to, p + begin, o);
    } else {
      add_open_values(a, a.formats[page], a.open[page], from, to, p + begin, o);
    }
  }
  for (std::int64_t d = 0; d < a.head_dim; ++d) o[d] = canonical(o[d]);
}

bool is_empty(const AttentionPartial& p) { return p.max == -__builtin_inff() && p.sum == 0.0f; }

}  // namespace

void attend_chunk_scalar(const AttendChunkArgs* args) {
  for (std::int64_t r = 0; r < args->rows; ++r) attend_row(*args, r);
}

void attention_merge_scalar(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                            const AttentionPartial* other, const float* other_o) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (is_empty(other[r])) continue;
    float* mine = o + r * d;
    const float* theirs = other_o + r * d;
    if (is_empty(state[r])) {
      state[r] = other[r];
      for (std::int64_t i = 0; i < d; ++i) mine[i] = theirs[i];
      continue;
    }
    const float m = max_of(state[r].max, other[r].max);
    const float a = exp_of(state[r].max - m);
    const float b = exp_of(other[r].max - m);
    state[r] = {m, canonical(fma(state[r].sum, a, other[r].sum * b))};
    for (std::int64_t i = 0; i < d; ++i) mine[i] = canonical(fma(mine[i], a, theirs[i] * b));
  }
}

void attention_finish_scalar(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                             const float* o, const float* sink, float* out, std::int64_t ldo,
                             std::int64_t head_dim_out) {
  for (std::int64_t r = 0; r < rows; ++r) {
    float* to = out + r * ldo;
    const bool empty = is_empty(state[r]);
    float a = 1.0f;
    float sum = state[r].sum;
    if (sink) {
      const float m = max_of(state[r].max, sink[r]);
      a = exp_of(state[r].max - m);
      sum = fma(sum, a, exp_of(sink[r] - m));
    }
    for (std::int64_t i = 0; i < head_dim_out; ++i) {
      to[i] = empty ? 0.0f : canonical(o[r * d + i] * a / sum);
    }
  }
}

void write_token_scalar(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                        const float* v, std::uint8_t* open) {
  const auto clamped = [](float x) { return max_of(-65504.0f, min_of(65504.0f, x)); };
  std::uint8_t* values = open + open_keys_bytes(d);
  for (std::int64_t i = 0; i < d; ++i) {
    const bool exact = format == KvFormat::f32;
    const float key = exact ? k[i] : canonical(clamped(k[i]));
    __builtin_memcpy(open + 4 * ((slot / 16 * d + i) * 16 + slot % 16), &key, 4);
    if (exact) {
      __builtin_memcpy(values + 4 * (slot * d + i), v + i, 4);
    } else {
      store_f16(values + 2 * (slot * d + i), f32_to_f16(clamped(v[i])));
    }
  }
}

void seal_page_scalar(KvFormat format, std::int64_t d, const std::uint8_t* open,
                      std::uint8_t* sealed) {
  const SealedLayout at = sealed_layout(format, d);
  for (std::int64_t i = at.v_scale + 2 * kPageTokens; i < at.bytes; ++i) sealed[i] = 0;
  store_means(format, d, open, sealed);
  for (std::int64_t j = 0; j < kPageTokens; ++j) {
    float key[kMostHeadDim];
    float value[kMostHeadDim];
    for (std::int64_t i = 0; i < d; ++i) {
      key[i] = open_key(open, d, j, i) - load_f16(sealed + at.k_mean + 2 * i);
      value[i] = open_value(format, open, d, j, i);
    }
    seal_key(format, d, j, key, sealed);
    seal_value(format, d, j, value, sealed);
  }
}

}  // namespace musespark

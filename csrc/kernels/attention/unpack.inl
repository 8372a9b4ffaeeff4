// Sealed keys and values of 4 bits in the 8-bit layout (formats/kv_page.h), once for all query rows
// of a call: the tiles know 8 bits only.
//
// A code is m * (nibble - 8 + side) = m * nibble - shift. m * nibble is at most 120, so one 16-bit
// product serves both bytes of a lane where they share a step. Keys do (a lane has four channels of
// a token): for 64 codes a mask, a product, a sum of bytes and half a shift. Values do not (four
// tokens of a channel): two products, and each second byte taken from the other.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/fetch.inl"
#include "kernels/detail/unroll.inl"

namespace musespark {
namespace {

// By a step as it is stored, m - 1 + 8 side: m; 128 - m (8 - side), for keys; the same less 128.
constexpr std::uint8_t kStepSize[16] = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8};
constexpr std::uint8_t kKeyShift[16] = {120, 112, 104, 96,  88, 80, 72, 64,
                                        121, 114, 107, 100, 93, 86, 79, 72};
constexpr std::uint8_t kValueShift[16] = {248, 240, 232, 224, 216, 208, 200, 192,
                                          249, 242, 235, 228, 221, 214, 207, 200};
constexpr std::int32_t kNibbles = 0x0f0f0f0f;
constexpr std::int32_t kOddBytes = static_cast<std::int32_t>(0xff00ff00u);

// One byte a token: [tokens 0..31, 32..63][group][32]. Groups are filled in pairs.
struct StepTable {
  std::uint8_t byte[2][kMostHeadDim / kStepChannels][32];
};

// What `steps`, the stored nibble pairs, become by f. Where the groups are odd in number f also
// meets 32 bytes of what follows in the page.
template <class F>
MS_INLINE void spread_steps(const std::uint8_t* steps, std::int64_t dim, StepTable* to, F f) {
  for (std::int64_t g = 0; g < step_groups(dim); g += 2) {
    const vi pairs = iload(reinterpret_cast<const std::int32_t*>(steps + 32 * g));
    istore(to->byte[0][g], f(iand(pairs, iset(kNibbles))));
    istore(to->byte[1][g], f(iand(ishr<4>(pairs), iset(kNibbles))));
  }
}

// f(i) for the channels from d on that share a step, kChannels at a time; unrolled where they are
// all there.
template <int kChannels, class F>
MS_INLINE void each_vector_of_group(std::int64_t d, std::int64_t dim, F f) {
  if (d + kStepChannels <= dim) {
    unroll<kStepChannels / kChannels>([&](auto i) MS_LAMBDA { f(d + i * kChannels); });
  } else {
    for (std::int64_t i = d; i < dim; i += kChannels) f(i);
  }
}

void unpack_keys(const std::uint8_t* page, const SealedLayout& at, std::int64_t dim,
                 std::uint8_t* tile, Fetch* fetch) {
  StepTable steps;
  spread_steps(page + at.k_steps, dim, &steps, [](vi step) MS_LAMBDA { return step; });
  const std::uint8_t* from = page + at.k_codes;
  for (std::int64_t b = 0; b < 4; ++b) {
    fetch->lines(fetch->unpack_lines / 4);
    for (std::int64_t d = 0; d < dim; d += kStepChannels) {
      const vi step = ispread(steps.byte[b / 2][d / kStepChannels] + b % 2 * 16);
      const vi size = ilookup(kStepSize, ior(step, iset(kOddBytes)));
      const vi shift = ilookup(kKeyShift, step);
      each_vector_of_group<8>(d, dim, [&](std::int64_t) MS_LAMBDA {
        const vi pairs = iload(reinterpret_cast<const std::int32_t*>(from));
        istore(tile, iadd8(imul16(iand(pairs, iset(kNibbles)), size), shift));
        istore(tile + 64, iadd8(imul16(iand(ishr<4>(pairs), iset(kNibbles)), size), shift));
        from += 64;
        tile += 128;
      });
    }
  }
}

// Four tokens of a group, in each lane.
MS_INLINE vi load_quad(const StepTable& table, std::int64_t quad, std::int64_t group) {
  std::int32_t four;
  __builtin_memcpy(&four, table.byte[quad / 8][group] + quad % 8 * 4, 4);
  return iset(four);
}

#if defined(__AVX512VBMI__)

// A lookup of m and nibble gives m * (nibble - 8); m where the side is 1 is added.
struct ValueSteps {
  StepTable index, side;
};

struct QuadSteps {
  vi index, side;
};

MS_INLINE QuadSteps load_steps(const ValueSteps& steps, std::int64_t quad, std::int64_t group) {
  return {load_quad(steps.index, quad, group), load_quad(steps.side, quad, group)};
}

struct ProductTable {
  alignas(64) std::int8_t byte[128];
  constexpr ProductTable() : byte() {
    for (int i = 0; i < 128; ++i) byte[i] = static_cast<std::int8_t>((i / 16 + 1) * (i % 16 - 8));
  }
};
constexpr ProductTable kProducts;
constexpr std::uint8_t kSide[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};

template <int kShift>
MS_INLINE vi nibbles_to_codes(vi pairs, const QuadSteps& steps) {
  const vi nibbles = kShift == 0 ? pairs : ishr<kShift>(pairs);
  const vi index = _mm512_ternarylogic_epi32(nibbles, iset(kNibbles), steps.index, 0xea);
  const vi products = _mm512_permutex2var_epi8(_mm512_load_si512(kProducts.byte), index,
                                               _mm512_load_si512(kProducts.byte + 64));
  return iadd8(products, steps.side);
}

void spread_value_steps(const std::uint8_t* stored, std::int64_t dim, ValueSteps* to) {
  spread_steps(stored, dim, &to->index,
               [](vi step) MS_LAMBDA { return ishl<4>(iand(step, iset(0x07070707))); });
  spread_steps(stored, dim, &to->side, [](vi step) MS_LAMBDA { return ilookup(kSide, step); });
}

#else

// Steps of a page's values: the sizes of even and of odd tokens as 16-bit lanes, and the shifts.
struct ValueSteps {
  StepTable even, odd, shift;
};

// What four tokens of a group need, in each lane.
struct QuadSteps {
  vi even, odd, shift;
};

MS_INLINE QuadSteps load_steps(const ValueSteps& steps, std::int64_t quad, std::int64_t group) {
  return {load_quad(steps.even, quad, group), load_quad(steps.odd, quad, group),
          load_quad(steps.shift, quad, group)};
}

// The codes of the nibbles kShift bits up.
template <int kShift>
MS_INLINE vi nibbles_to_codes(vi pairs, const QuadSteps& steps) {
  const vi nibbles = iand(kShift == 0 ? pairs : ishr<kShift>(pairs), iset(kNibbles));
  const vi codes = iblend(iset(kOddBytes), imul16(nibbles, steps.odd), imul16(nibbles, steps.even));
  return iadd8(codes, steps.shift);
}

void spread_value_steps(const std::uint8_t* stored, std::int64_t dim, ValueSteps* to) {
  const vi holes = iset(kOddBytes);
  spread_steps(stored, dim, &to->even,
               [=](vi step) MS_LAMBDA { return ilookup(kStepSize, ior(step, holes)); });
  spread_steps(stored, dim, &to->odd,
               [=](vi step) MS_LAMBDA { return ilookup(kStepSize, ior(ishr<8>(step), holes)); });
  spread_steps(stored, dim, &to->shift,
               [](vi step) MS_LAMBDA { return ilookup(kValueShift, step); });
}

#endif

void unpack_values(const std::uint8_t* page, const SealedLayout& at, std::int64_t dim,
                   std::uint8_t* tile, Fetch* fetch) {
  ValueSteps steps;
  spread_value_steps(page + at.v_steps, dim, &steps);
  const std::uint8_t* from = page + at.v_codes;
  for (std::int64_t quad = 0; quad < kPageTokens / 4; quad += 2) {
    fetch->lines(fetch->unpack_lines / 8);
    std::uint8_t* first = tile + quad * 4 * dim;
    std::uint8_t* second = first + 4 * dim;
    for (std::int64_t d = 0; d < dim; d += kStepChannels) {
      const QuadSteps a = load_steps(steps, quad, d / kStepChannels);
      const QuadSteps b = load_steps(steps, quad + 1, d / kStepChannels);
      each_vector_of_group<16>(d, dim, [&](std::int64_t i) MS_LAMBDA {
        const vi pairs = iload(reinterpret_cast<const std::int32_t*>(from));
        istore(first + 4 * i, nibbles_to_codes<0>(pairs, a));
        istore(second + 4 * i, nibbles_to_codes<4>(pairs, b));
        from += 64;
      });
    }
  }
}

}  // namespace
}  // namespace musespark

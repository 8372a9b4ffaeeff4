// Random numbers as a function of (seed, stream, position): a draw never depends on how many draws
// came before it, so a batch, a retry or a preempted sequence sees the same numbers.
//
// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011): key = seed, counter = (position, stream), little word first.
#pragma once

#include <array>
#include <cstdint>

namespace musespark {

// The raw generator: ten rounds over a 128-bit counter with a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// The four words drawn at one place.
std::array<std::uint32_t, 4> random_words(std::uint64_t seed, std::uint64_t stream,
                                          std::uint64_t position);

// Uniform in [0, 1): the upper 24 bits of the first word over 2^24, exact in float.
float random_uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t position);

// Uniform in [0, 1): 53 bits of the first two words over 2^53.
double random_uniform64(std::uint64_t seed, std::uint64_t stream, std::uint64_t position);

}  // namespace musespark

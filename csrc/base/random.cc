#include "base/random.h"

namespace musespark {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xd2511f53;
constexpr std::uint32_t kMultiplier1 = 0xcd9e8d57;
constexpr std::uint32_t kWeyl0 = 0x9e3779b9;  // golden ratio
constexpr std::uint32_t kWeyl1 = 0xbb67ae85;  // sqrt(3) - 1
constexpr int kRounds = 10;

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = static_cast<std::uint64_t>(kMultiplier0) * counter[0];
    const std::uint64_t product1 = static_cast<std::uint64_t>(kMultiplier1) * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

std::array<std::uint32_t, 4> random_words(std::uint64_t seed, std::uint64_t stream,
                                          std::uint64_t position) {
  return philox4x32(
      {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32),
       static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

float random_uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t position) {
  return static_cast<float>(random_words(seed, stream, position)[0] >> 8) * 0x1p-24f;
}

double random_uniform64(std::uint64_t seed, std::uint64_t stream, std::uint64_t position) {
  const auto words = random_words(seed, stream, position);
  const std::uint64_t bits = (static_cast<std::uint64_t>(words[0]) << 21) | (words[1] >> 11);
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace musespark

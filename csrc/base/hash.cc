#include "base/hash.h"

#include <bit>
#include <cstring>

namespace musespark {
namespace {

constexpr std::uint64_t kPrime1 = 0x9e3779b185ebca87;
constexpr std::uint64_t kPrime2 = 0xc2b2ae3d27d4eb4f;
constexpr std::uint64_t kPrime3 = 0x165667b19e3779f9;
constexpr std::uint64_t kPrime4 = 0x85ebca77c2b2ae63;
constexpr std::uint64_t kPrime5 = 0x27d4eb2f165667c5;

static_assert(std::endian::native == std::endian::little, "XXH64 reads little-endian words");

template <class Word>
std::uint64_t load(const unsigned char* from) {
  Word word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

std::uint64_t mix(std::uint64_t lane, std::uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

void consume_stripe(std::uint64_t (&lanes)[4], const unsigned char* stripe) {
  for (int i = 0; i < 4; ++i) lanes[i] = mix(lanes[i], load<std::uint64_t>(stripe + 8 * i));
}

}  // namespace

Xxh64::Xxh64(std::uint64_t seed)
    : seed_(seed), lanes_{seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1} {}

void Xxh64::update(const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  total_ += size;
  if (tail_size_ > 0) {
    const std::size_t taken = size < kStripe - tail_size_ ? size : kStripe - tail_size_;
    if (taken > 0) std::memcpy(tail_ + tail_size_, bytes, taken);
    tail_size_ += taken;
    bytes += taken;
    size -= taken;
    if (tail_size_ < kStripe) return;
    consume_stripe(lanes_, tail_);
    tail_size_ = 0;
  }
  for (; size >= kStripe; bytes += kStripe, size -= kStripe) consume_stripe(lanes_, bytes);
  if (size > 0) std::memcpy(tail_, bytes, size);
  tail_size_ = size;
}

std::uint64_t Xxh64::digest() const {
  std::uint64_t hash;
  if (total_ >= kStripe) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (const std::uint64_t lane : lanes_) hash = (hash ^ mix(0, lane)) * kPrime1 + kPrime4;
  } else {
    hash = seed_ + kPrime5;
  }
  hash += total_;
  const unsigned char* rest = tail_;
  std::size_t left = tail_size_;
  for (; left >= 8; rest += 8, left -= 8) {
    hash = std::rotl(hash ^ mix(0, load<std::uint64_t>(rest)), 27) * kPrime1 + kPrime4;
  }
  if (left >= 4) {
    hash = std::rotl(hash ^ (load<std::uint32_t>(rest) * kPrime1), 23) * kPrime2 + kPrime3;
    rest += 4;
    left -= 4;
  }
  for (; left > 0; ++rest, --left) hash = std::rotl(hash ^ (*rest * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

std::uint64_t xxh64(const void* data, std::size_t size, std::uint64_t seed) {
  Xxh64 hash(seed);
  hash.update(data, size);
  return hash.digest();
}

}  // namespace musespark

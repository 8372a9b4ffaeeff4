// XXH64, from its public specification (xxHash, doc/xxhash_spec.md, version 0.1.1): the checksum of
// packed payloads. It finds damage; it is no defence against forgery.
#pragma once

#include <cstddef>
#include <cstdint>

namespace musespark {

std::uint64_t xxh64(const void* data, std::size_t size, std::uint64_t seed = 0);

// The same over a stream of pieces: any cutting gives the hash of the whole.
class Xxh64 {
 public:
  explicit Xxh64(std::uint64_t seed = 0);
  void update(const void* data, std::size_t size);
  std::uint64_t digest() const;

 private:
  static constexpr std::size_t kStripe = 32;
  std::uint64_t seed_;
  std::uint64_t lanes_[4];
  std::uint64_t total_ = 0;
  unsigned char tail_[kStripe];
  std::size_t tail_size_ = 0;
};

}  // namespace musespark

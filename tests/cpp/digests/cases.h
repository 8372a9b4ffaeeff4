// What the parts of core_digests share: random numbers, guarded memory, and the comparison of each
// instruction-set level with scalar.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace musespark::digests {

// Numbers that depend on the seed alone, made without libm.
class Random {
 public:
  explicit Random(std::uint64_t seed) : seed_(seed) {}
  std::uint32_t word();
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(word()) % n; }
  // Bell-shaped, about one wide.
  float normal();
  void fill(std::span<float> out, float scale = 1.0f);
  // Any float but NaN and infinity: every exponent is as likely.
  float any_finite();

 private:
  std::uint64_t seed_, position_ = 0;
};

// Zeroed memory whose last byte is followed by a page that nobody may touch; 64-byte aligned where
// the size is a multiple of 64.
class Guarded {
 public:
  explicit Guarded(std::int64_t bytes);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  std::int64_t size() const { return size_; }

 private:
  std::uint8_t* data_;
  std::size_t size_, mapped_;
  void* map_;
};

// A guarded array.
template <class T>
class Array {
 public:
  explicit Array(std::int64_t count) : memory_(count * static_cast<std::int64_t>(sizeof(T))) {}
  T* data() { return memory_.as<T>(); }
  T& operator[](std::int64_t i) { return data()[i]; }
  std::int64_t size() const { return memory_.size() / static_cast<std::int64_t>(sizeof(T)); }
  std::span<T> span() { return {data(), static_cast<std::size_t>(size())}; }

 private:
  Guarded memory_;
};

// The bytes a kernel wrote.
using Bytes = std::vector<std::uint8_t>;

template <class T>
void append(Bytes& to, const T* from, std::int64_t count) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  to.insert(to.end(), bytes, bytes + count * static_cast<std::int64_t>(sizeof(T)));
}

// Prints the digest of some bytes under a name.
void report(const std::string& name, const Bytes& bytes);

// Reports the bytes that `run` gives at scalar, and counts a failure for every level this process
// may use at which it gives others. `run` takes a const KernelTable&.
template <class Run>
void compare_levels(const std::string& name, const Run& run);

// Told a name, level and both results; true if they are equal. Part of compare_levels.
bool same_bytes(const std::string& name, Isa level, const Bytes& actual, const Bytes& expected);

template <class Run>
void compare_levels(const std::string& name, const Run& run) {
  const Bytes expected = run(kernel_table(Isa::scalar));
  report(name, expected);
  for (const Isa level : isa_levels()) {
    if (level == Isa::scalar || !has_kernel_table(level)) continue;
    same_bytes(name, level, run(kernel_table(level)), expected);
  }
}

void base_digests();
void matmul_digests();
void attention_digests();
void whole_digests();
void rowwise_digests();
void forward_digests();
void image_digests();

}  // namespace musespark::digests

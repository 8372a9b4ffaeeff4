// Memory that vector loads may read: aligned to a cache line, freed with its owner.
#pragma once

#include <cstddef>
#include <utility>

namespace musespark {

inline constexpr std::size_t kCacheLine = 64;

// What backs a buffer; `huge` asks for 2 MiB at a time where that can be had, which it may not.
enum class PageSize { usual, huge };

// `size` bytes at a 64-byte boundary, all zero; a size of 0 has no memory. Moves, never copies.
// Large buffers come from the system as untouched zero pages, so a page costs memory when it is
// first written, not before. Throws MemoryBudgetExceeded, naming the bytes, if there is none.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size, PageSize pages = PageSize::usual);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

  // Returns the memory of [begin, begin + size) to the system, as far as it goes in whole pages:
  // the bytes may be anything after that, and cost memory when they are written again.
  void forget(std::size_t begin, std::size_t size) noexcept;

  // The bytes as an array of a trivial type; the caller keeps to size() / sizeof(T) elements.
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace musespark

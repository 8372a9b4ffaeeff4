#include "base/aligned.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

// Below this the heap is quicker; under AddressSanitizer everything comes from the heap, which is
// what it can watch.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMapFrom = std::numeric_limits<std::size_t>::max();
#else
constexpr std::size_t kMapFrom = std::size_t{1} << 20;
#endif

[[noreturn]] void throw_refused(std::size_t size) {
  throw MemoryBudgetExceeded("the system refused an allocation of " + std::to_string(size) +
                             " bytes");
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t size) {
  if (size == 0) return;
  if (size > std::numeric_limits<std::ptrdiff_t>::max() - kCacheLine) throw_refused(size);
  if (size >= kMapFrom) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw_refused(size);
    data_ = static_cast<std::byte*>(memory);
  } else {
    const std::size_t rounded = (size + kCacheLine - 1) / kCacheLine * kCacheLine;
    void* memory = std::aligned_alloc(kCacheLine, rounded);
    if (!memory) throw_refused(size);
    std::memset(memory, 0, rounded);
    data_ = static_cast<std::byte*>(memory);
  }
  size_ = size;
}

AlignedBuffer::~AlignedBuffer() {
  if (size_ >= kMapFrom) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

}  // namespace musespark

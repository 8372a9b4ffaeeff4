#include "base/aligned.h"

#include <sys/mman.h>
#include <unistd.h>

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

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::byte* map(std::size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw_refused(size);
  return static_cast<std::byte*>(memory);
}

std::size_t round_up(std::size_t value, std::size_t step) {
  return (value + step - 1) / step * step;
}

// At a multiple of 2 MiB, where a huge page can begin: what lies around it goes back.
std::byte* map_huge(std::size_t size) {
  const std::size_t all = size + kHugePage;
  std::byte* memory = map(all);
  const auto address = reinterpret_cast<std::size_t>(memory);
  const std::size_t before = round_up(address, kHugePage) - address;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t end = round_up(before + size, page);
  if (before > 0) munmap(memory, before);
  if (end < round_up(all, page)) munmap(memory + end, round_up(all, page) - end);
#if defined(MADV_HUGEPAGE)
  madvise(memory + before, size, MADV_HUGEPAGE);  // a hint: without it nothing but speed is lost
#endif
  return memory + before;
}

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t size, PageSize pages) {
  if (size == 0) return;
  if (size > std::numeric_limits<std::ptrdiff_t>::max() - 2 * kHugePage) throw_refused(size);
  if (size >= kMapFrom) {
    data_ = pages == PageSize::huge && size >= kHugePage ? map_huge(size) : map(size);
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

void AlignedBuffer::forget(std::size_t begin, std::size_t size) noexcept {
  if (size_ < kMapFrom) return;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t first = round_up(begin, page);  // the mapping begins with a page
  const std::size_t end = (begin + size) / page * page;
  if (first < end) madvise(data_ + first, end - first, MADV_DONTNEED);
}

}  // namespace musespark

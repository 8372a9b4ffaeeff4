// Memory for parts of one size (cache/page_pool.h), out of slabs that hold more and more of them,
// so that the system can back them with huge pages: a page of keys and values is read a few
// kilobytes at a time, megabytes apart, and walking the page tables for each costs a third of the
// bandwidth otherwise (kernels/README.md, What was tried).
//
// A part is in use, spare (given back, its memory kept for the next) or empty (without memory).
// Each slab holds as many parts as there were before, up to kMostSlabBytes: slabs of 2 MiB and more
// ask for huge pages, so little caches stay as small as they are, and beyond its parts in use and
// spare an arena never holds more memory than the rest of one huge page for each slab.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"

namespace musespark {

class PartArena {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::int64_t kMostSlabBytes = 0;  // each part by itself, so that it is watched
#else
  static constexpr std::int64_t kMostSlabBytes = std::int64_t{32} << 20;
#endif

  // bytes: of a part. huge_pages: whether slabs ask the system for them.
  PartArena(std::int64_t bytes, bool huge_pages) : bytes_(bytes), huge_pages_(huge_pages) {}

  struct Part {
    std::uint8_t* data = nullptr;
    std::int32_t slab = 0;
  };

  std::int64_t part_bytes() const { return bytes_; }
  bool has_spare() const { return !spare_.empty(); }
  // A spare part, else an empty one; its bytes may be anything. Throws MemoryBudgetExceeded where
  // the system has no memory.
  Part take();
  // Makes a part in use a spare one.
  void give_back(Part part) noexcept;
  // Returns spare memory to the system: a slab without parts in use as a whole, else one part. How
  // many parts are spare no longer; 0 if none was.
  std::int64_t discard() noexcept;
  // Bytes of address space that all slabs take.
  std::int64_t mapped_bytes() const { return mapped_; }

 private:
  struct Slab {
    AlignedBuffer memory;
    std::int64_t parts = 0;
    std::int64_t in_use = 0;
    std::vector<std::uint8_t*> empty;  // last in, first out
  };

  Part take_empty(std::int32_t slab) noexcept;
  std::int32_t add_slab();

  std::int64_t bytes_;
  bool huge_pages_;
  std::vector<Slab> slabs_;  // one that was returned keeps its place, without parts
  std::vector<Part> spare_;  // last in, first out; has room for all parts
  std::int64_t parts_ = 0;
  std::int64_t mapped_ = 0;
};

}  // namespace musespark

#include "cache/part_arena.h"

#include <algorithm>
#include <utility>

#include "base/errors.h"

namespace musespark {

PartArena::Part PartArena::take() {
  if (!spare_.empty()) {
    const Part part = spare_.back();
    spare_.pop_back();
    ++slabs_[static_cast<std::size_t>(part.slab)].in_use;
    return part;
  }
  for (std::size_t i = 0; i < slabs_.size(); ++i) {
    if (!slabs_[i].empty.empty()) return take_empty(static_cast<std::int32_t>(i));
  }
  return take_empty(add_slab());
}

PartArena::Part PartArena::take_empty(std::int32_t slab) noexcept {
  Slab& from = slabs_[static_cast<std::size_t>(slab)];
  const Part part = {from.empty.back(), slab};
  from.empty.pop_back();
  ++from.in_use;
  return part;
}

// As many parts as there are; where the system refuses so much address space, half and half again.
std::int32_t PartArena::add_slab() {
  std::int64_t count =
      std::clamp<std::int64_t>(parts_, 1, std::max<std::int64_t>(1, kMostSlabBytes / bytes_));
  Slab slab;
  while (slab.memory.data() == nullptr) {
    try {
      slab.memory = AlignedBuffer(static_cast<std::size_t>(count * bytes_),
                                  huge_pages_ ? PageSize::huge : PageSize::usual);
    } catch (const MemoryBudgetExceeded&) {
      if (count == 1) throw;
      count /= 2;
    }
  }
  slab.parts = count;
  for (std::int64_t i = count; i-- > 0;) {  // so that they are taken ascending
    slab.empty.push_back(slab.memory.as<std::uint8_t>() + i * bytes_);
  }
  spare_.reserve(static_cast<std::size_t>(parts_ + count));  // give_back() must not fail
  const auto returned = std::find_if(slabs_.begin(), slabs_.end(),
                                     [](const Slab& other) { return other.parts == 0; });
  const std::int64_t at = returned - slabs_.begin();
  if (returned == slabs_.end()) {
    slabs_.push_back(std::move(slab));
  } else {
    *returned = std::move(slab);
  }
  parts_ += count;
  mapped_ += count * bytes_;
  return static_cast<std::int32_t>(at);
}

void PartArena::give_back(Part part) noexcept {
  --slabs_[static_cast<std::size_t>(part.slab)].in_use;
  spare_.push_back(part);
}

std::int64_t PartArena::discard() noexcept {
  if (spare_.empty()) return 0;
  for (std::size_t i = 0; i < slabs_.size(); ++i) {
    Slab& slab = slabs_[i];
    if (slab.in_use > 0 || static_cast<std::int64_t>(slab.empty.size()) == slab.parts) continue;
    const auto kept = std::remove_if(spare_.begin(), spare_.end(), [i](const Part& part) {
      return part.slab == static_cast<std::int32_t>(i);
    });
    const std::int64_t dropped = spare_.end() - kept;
    spare_.erase(kept, spare_.end());
    parts_ -= slab.parts;
    mapped_ -= slab.parts * bytes_;
    slab = Slab();
    return dropped;
  }
  const Part part = spare_.back();
  spare_.pop_back();
  Slab& slab = slabs_[static_cast<std::size_t>(part.slab)];
  slab.memory.forget(static_cast<std::size_t>(part.data - slab.memory.as<std::uint8_t>()),
                     static_cast<std::size_t>(bytes_));
  slab.empty.push_back(part.data);  // had room for it: it came from there
  return 1;
}

}  // namespace musespark

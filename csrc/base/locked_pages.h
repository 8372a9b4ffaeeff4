// Memory that the system may not take away: neither dropped (a mapped file) nor swapped out.
#pragma once

#include <cstddef>
#include <span>

namespace musespark {

// Reads in what is not in memory yet and locks the pages of all ranges, until they are unmapped.
// Throws MemoryBudgetExceeded, naming the bytes and the limit; then none of them stays locked.
void lock_pages(std::span<const std::span<const std::byte>> ranges);

}  // namespace musespark

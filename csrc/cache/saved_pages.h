// The pages of a sequence outside its pool: which they are, in which order, and how they come back.
//
// A sequence of L accepted tokens holds, in each class, the pages that a query at L sees. Full ones
// are sealed (open for f32); the one that L lies in has its open part. A second sequence that ended
// earlier on the same tokens, at a prompt's end, shares the full pages that both have.
//
//     order: the sequence's pages, class by class, ascending; then the second one's own likewise
//     page:  one part, as it lies in the pool (page_pool.h)
//
// So lengths and the pool's layout say everything about the bytes, and nothing else is stored.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/sequence.h"

namespace musespark {

struct SavedLengths {
  std::int64_t length = 0;
  std::int64_t prompt = 0;  // of the second sequence, at most length; 0: there is none
};

struct SavedPage {
  int page_class;
  std::int64_t index;  // from position 0
  std::int64_t rows;   // 64; fewer of the page that a sequence ends in, which is open
  std::int64_t bytes;
  bool of_second;
};

std::vector<SavedPage> saved_pages(const PagePool& pool, SavedLengths lengths);

// Where the parts lie that `saved_pages` lists. `second` may be null. Throws Error where a sequence
// does not hold what its length says.
std::vector<std::uint8_t*> locate_pages(const std::vector<SavedPage>& pages, const Sequence& first,
                                        const Sequence* second);

// New sequences of these lengths, their rows unwritten. Throws MemoryBudgetExceeded; nothing is
// taken then.
struct PlacedSequences {
  Sequence first;
  std::optional<Sequence> second;
};
PlacedSequences place_pages(PagePool& pool, SavedLengths lengths,
                            const std::vector<SavedPage>& pages);

// Zeroes what was never written, or by others: the rows from page.rows on, in a copy of its part.
void clear_unwritten(const PagePool& pool, const SavedPage& page, std::uint8_t* bytes);

}  // namespace musespark

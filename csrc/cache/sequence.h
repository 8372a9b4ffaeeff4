// One token sequence's keys and values: a table of pages for each page class.
//
// Positions 0..length()-1 are written. Those below accepted() are final: the sequence is never cut
// back below them by drafts, so their pages need no open part once full, and pages that lie outside
// the window of every query from accepted() on are given back.
//
// A token has one slot in each page class. Its slot is its position, but in the class without a
// window after rows were evicted there: what is left moves together, in order, and slots then count
// what is left.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/page_pool.h"

namespace musespark {

// First position that a query at `position` sees through `window` (0: everything).
inline std::int64_t first_visible(std::int64_t position, std::int64_t window) {
  return window == 0 || position < window ? 0 : position - window + 1;
}

// Moves, never copies; fork() copies. Ends with its pages given back; the pool must outlive it.
class Sequence {
 public:
  // Pages first, first + 1, ... of a page class.
  struct Pages {
    std::int64_t first = 0;
    std::vector<PageId> ids;
  };

  explicit Sequence(PagePool& pool);
  // Of `length` accepted tokens: shares these pages, by class, those that a query at `length` sees;
  // the open part of the page that it lies in too.
  Sequence(PagePool& pool, std::int64_t length, const std::vector<Pages>& pages);
  ~Sequence();
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  PagePool& pool() const { return *pool_; }
  std::int64_t length() const { return length_; }
  std::int64_t accepted() const { return accepted_; }
  // Positions that have no slot in the class without a window.
  std::int64_t evicted() const { return evicted_; }
  std::int64_t slots(int page_class) const {
    return length_ - (pool_->window(page_class) == 0 ? evicted_ : 0);
  }
  // Whether pages were put in the place of those that the forward path wrote.
  bool rewritten() const { return rewritten_from_ >= 0; }

  // A second sequence with the same content. All pages are shared; the first write into a shared,
  // partly filled page copies it (the next step of whichever writes first takes one more page).
  Sequence fork() const;

  // Cuts the sequence to `length` (0 <= length <= length()) or, where that is not possible, to the
  // nearest shorter length that is, and returns it: a length inside a page needs its open rows, so
  // it falls to the page's first position without them; and if the pages that a query at the new
  // end sees through a window are gone, it falls to 0. Where positions were evicted, what was
  // rewritten goes as a whole. accepted() is lowered with it.
  std::int64_t truncate(std::int64_t length);

  // Declares the first `length` tokens final (accepted() <= length <= length()).
  void accept(std::int64_t length);

  // --- for the forward path ---

  // Makes the pages of positions length() .. length()+count-1 writable. Throws
  // MemoryBudgetExceeded; the sequence holds then what it held before.
  void begin_step(std::int64_t count);
  // Ends the step: length() grows by its count, or everything it took is given back.
  void commit_step() noexcept;
  void discard_step() noexcept;

  // Puts `pages`, references of its own, in the place of the pages of the class without a window
  // from index `first` on. They hold the slots from there to `slots`, in full pages but for the
  // last, which then has an open part. Not during a step; all tokens are accepted.
  void replace_from(std::int64_t first, const std::vector<PageId>& pages, std::int64_t slots);
  // Puts a reference to a full page in the place of one.
  void replace_page(std::int64_t page, PageId by) noexcept;

  // The parts of page `page` (of slots page * 64 ..) in a page class; null where the page has
  // no such part, is outside the window and gone, or beyond the table.
  struct Parts {
    std::uint8_t* open;
    std::uint8_t* sealed;
    KvForm form;
  };
  Parts parts(int page_class, std::int64_t page) const;

  // The page itself, or -1 where the sequence does not hold it.
  PageId page(int page_class, std::int64_t page) const;

  // Pages held in a class, for tests and statistics.
  std::int64_t pages(int page_class) const;

 private:
  struct Entry {
    PageId page;
    bool open;  // this sequence holds a reference to the page's open part
  };
  struct Table {
    std::int64_t first = 0;  // page index of entries[0]; earlier pages are given back
    std::vector<Entry> entries;
    std::int64_t end() const { return first + static_cast<std::int64_t>(entries.size()); }
  };
  void drop_from(Table* table, std::int64_t page) noexcept;
  void drop_stale_seal(const Entry& last) noexcept;
  void clear() noexcept;

  PagePool* pool_;
  std::vector<Table> tables_;
  std::int64_t length_ = 0;
  std::int64_t accepted_ = 0;
  std::int64_t step_ = 0;  // tokens of the step under way
  std::int64_t evicted_ = 0;
  std::int64_t rewritten_from_ = -1;  // the first page that was replaced; -1: none
};

}  // namespace musespark

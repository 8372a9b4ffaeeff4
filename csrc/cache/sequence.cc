#include "cache/sequence.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/errors.h"

namespace musespark {

Sequence::Sequence(PagePool& pool)
    : pool_(&pool), tables_(static_cast<std::size_t>(pool.classes())) {}

Sequence::Sequence(PagePool& pool, std::int64_t length, const std::vector<Pages>& pages)
    : Sequence(pool) {
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    tables_[c].first = pages[c].first;
    tables_[c].entries.reserve(pages[c].ids.size());
    std::int64_t end = pages[c].first * kPageTokens;
    for (const PageId page : pages[c].ids) {
      end += kPageTokens;
      const bool open = !pool.seals() || end > length;
      pool.share(page, open);
      tables_[c].entries.push_back({page, open});
    }
  }
  length_ = accepted_ = length;
}

Sequence::~Sequence() { clear(); }

Sequence::Sequence(Sequence&& other) noexcept
    : pool_(other.pool_),
      tables_(std::exchange(other.tables_, {})),
      length_(std::exchange(other.length_, 0)),
      accepted_(std::exchange(other.accepted_, 0)),
      step_(std::exchange(other.step_, 0)),
      evicted_(std::exchange(other.evicted_, 0)),
      rewritten_from_(std::exchange(other.rewritten_from_, -1)) {}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this == &other) return *this;
  clear();
  pool_ = other.pool_;
  tables_ = std::exchange(other.tables_, {});
  length_ = std::exchange(other.length_, 0);
  accepted_ = std::exchange(other.accepted_, 0);
  step_ = std::exchange(other.step_, 0);
  evicted_ = std::exchange(other.evicted_, 0);
  rewritten_from_ = std::exchange(other.rewritten_from_, -1);
  return *this;
}

void Sequence::clear() noexcept {
  for (Table& table : tables_) drop_from(&table, 0);
}

// Gives back the pages from index `page` on.
void Sequence::drop_from(Table* table, std::int64_t page) noexcept {
  while (!table->entries.empty() &&
         table->first + static_cast<std::int64_t>(table->entries.size()) > page) {
    const Entry entry = table->entries.back();
    table->entries.pop_back();
    pool_->release(entry.page, entry.open);
  }
}

// A page that is no longer full has rows it was sealed from cut off; the seal may go unless another
// sequence still has the whole page.
void Sequence::drop_stale_seal(const Entry& last) noexcept {
  if (pool_->references(last.page) == 1) pool_->drop_sealed(last.page);
}

Sequence Sequence::fork() const {
  if (step_ != 0) throw Error("[sequence] fork during a step");
  Sequence copy(*pool_);
  std::vector<Table> tables = tables_;  // may fail: nothing is shared yet
  copy.tables_.swap(tables);
  copy.length_ = length_;
  copy.accepted_ = accepted_;
  copy.evicted_ = evicted_;
  copy.rewritten_from_ = rewritten_from_;
  for (const Table& table : tables_) {
    for (const Entry& entry : table.entries) pool_->share(entry.page, entry.open);
  }
  return copy;
}

std::int64_t Sequence::truncate(std::int64_t length) {
  if (step_ != 0) throw Error("[sequence] truncate during a step");
  if (length < 0 || length > length_) {
    throw InvalidRequest("[sequence] truncate to " + std::to_string(length) +
                         " tokens; the sequence has " + std::to_string(length_));
  }
  if (length == length_) return length;
  if (evicted_ > 0) length = std::min(length, rewritten_from_ * kPageTokens);
  const std::int64_t page = length / kPageTokens;
  for (const Table& table : tables_) {
    const std::int64_t at = page - table.first;
    const bool open = at >= 0 && at < static_cast<std::int64_t>(table.entries.size()) &&
                      table.entries[static_cast<std::size_t>(at)].open;
    if (!open) length = page * kPageTokens;
  }
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    const std::int64_t seen = first_visible(length, pool_->window(static_cast<int>(c)));
    if (seen / kPageTokens < tables_[c].first) length = 0;
  }
  for (Table& table : tables_) {
    drop_from(&table, (length + kPageTokens - 1) / kPageTokens);
    if (length == 0) table.first = 0;
    if (length % kPageTokens != 0) drop_stale_seal(table.entries.back());
  }
  length_ = length;
  accepted_ = std::min(accepted_, length);
  evicted_ = 0;  // gone with what was rewritten
  if (length <= rewritten_from_ * kPageTokens) rewritten_from_ = -1;
  return length;
}

void Sequence::accept(std::int64_t length) {
  if (length < accepted_ || length > length_) {
    throw InvalidRequest("[sequence] accept " + std::to_string(length) + " tokens; " +
                         std::to_string(accepted_) + " are accepted already and " +
                         std::to_string(length_) + " are there");
  }
  const std::int64_t before = accepted_;
  accepted_ = length;
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    Table& table = tables_[c];
    if (pool_->seals()) {
      const std::int64_t without = length_ - slots(static_cast<int>(c));
      for (std::int64_t page = std::max((before - without) / kPageTokens, table.first);
           (page + 1) * kPageTokens <= length - without; ++page) {
        Entry& entry = table.entries[static_cast<std::size_t>(page - table.first)];
        if (std::exchange(entry.open, false)) pool_->release_open(entry.page);
      }
    }
    const std::int64_t seen = first_visible(length, pool_->window(static_cast<int>(c)));
    std::int64_t gone = 0;
    const auto held = static_cast<std::int64_t>(table.entries.size());
    while (gone < held && (table.first + gone + 1) * kPageTokens <= seen) {
      const Entry& entry = table.entries[static_cast<std::size_t>(gone)];
      pool_->release(entry.page, entry.open);
      ++gone;
    }
    table.entries.erase(table.entries.begin(), table.entries.begin() + gone);
    table.first += gone;
  }
}

void Sequence::begin_step(std::int64_t count) {
  if (step_ != 0) throw Error("[sequence] a step is under way");
  if (count < 1) throw InvalidRequest("[sequence] a step of " + std::to_string(count) + " tokens");
  step_ = count;
  try {
    for (std::size_t c = 0; c < tables_.size(); ++c) {
      Table& table = tables_[c];
      const std::int64_t begin = slots(static_cast<int>(c)), end = begin + count;
      const std::int64_t pages = (end + kPageTokens - 1) / kPageTokens;
      const auto held = static_cast<std::size_t>(pages - table.first);
      if (table.entries.capacity() < held) table.entries.reserve(2 * held);
      if (begin % kPageTokens != 0) {  // the page under way must be ours alone
        Entry& last = table.entries.back();
        if (pool_->references(last.page) > 1) {
          const PageId own = pool_->acquire(static_cast<int>(c), pool_->form(last.page));
          pool_->copy_open(last.page, own);
          pool_->release(last.page, last.open);
          last = {own, true};
        }
      }
      for (std::int64_t page = table.end(); page < pages; ++page) {
        table.entries.push_back({pool_->acquire(static_cast<int>(c), form_of_page(page)), true});
      }
      for (std::int64_t page = begin / kPageTokens; (page + 1) * kPageTokens <= end; ++page) {
        pool_->add_sealed(table.entries[static_cast<std::size_t>(page - table.first)].page);
      }
    }
  } catch (...) {
    discard_step();
    throw;
  }
}

void Sequence::commit_step() noexcept {
  length_ += step_;
  step_ = 0;
}

void Sequence::discard_step() noexcept {
  for (std::size_t c = 0; c < tables_.size(); ++c) {
    const std::int64_t end = slots(static_cast<int>(c));
    drop_from(&tables_[c], (end + kPageTokens - 1) / kPageTokens);
    if (end % kPageTokens != 0) drop_stale_seal(tables_[c].entries.back());
  }
  step_ = 0;
}

void Sequence::replace_from(std::int64_t first, const std::vector<PageId>& pages,
                            std::int64_t slots) {
  if (step_ != 0 || accepted_ != length_ || pool_->window(0) != 0) {
    throw Error("[sequence] replace_from during a step, or with nothing to replace");
  }
  Table& table = tables_[0];
  table.entries.reserve(static_cast<std::size_t>(first) + pages.size());
  drop_from(&table, first);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::int64_t end = (first + static_cast<std::int64_t>(i) + 1) * kPageTokens;
    table.entries.push_back({pages[i], !pool_->seals() || end > slots});
  }
  evicted_ = length_ - slots;
  if (rewritten_from_ < 0 || first < rewritten_from_) rewritten_from_ = first;
}

void Sequence::replace_page(std::int64_t page, PageId by) noexcept {
  Entry& entry = tables_[0].entries[static_cast<std::size_t>(page)];
  pool_->release(entry.page, entry.open);
  entry = {by, false};
  if (rewritten_from_ < 0 || page < rewritten_from_) rewritten_from_ = page;
}

Sequence::Parts Sequence::parts(int page_class, std::int64_t page) const {
  const Table& table = tables_[static_cast<std::size_t>(page_class)];
  const std::int64_t at = page - table.first;
  if (at < 0 || at >= static_cast<std::int64_t>(table.entries.size()))
    return {nullptr, nullptr, KvForm::body};
  const Entry& entry = table.entries[static_cast<std::size_t>(at)];
  return {entry.open ? pool_->open(entry.page) : nullptr, pool_->sealed(entry.page),
          pool_->form(entry.page)};
}

PageId Sequence::page(int page_class, std::int64_t page) const {
  const Table& table = tables_[static_cast<std::size_t>(page_class)];
  const std::int64_t at = page - table.first;
  const bool held = at >= 0 && at < static_cast<std::int64_t>(table.entries.size());
  return held ? table.entries[static_cast<std::size_t>(at)].page : -1;
}

std::int64_t Sequence::pages(int page_class) const {
  return static_cast<std::int64_t>(tables_[static_cast<std::size_t>(page_class)].entries.size());
}

}  // namespace musespark

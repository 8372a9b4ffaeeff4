#include "model/rewrite_pages.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/aligned.h"
#include "formats/kv_page_codec.h"
#include "kernels/dispatch.h"
#include "model/page_rows.h"
#include "ops/choose_rows.h"

namespace musespark {
namespace {

// Writes `count` rows, those of `chosen`, into a page: sealed where it has such a part and no open
// one, else open.
void store(PagePool& pool, PageId page, const PageHead& head, const HeadRows& rows,
           const std::int32_t* chosen, std::int64_t count) {
  const KernelTable& table = kernels();
  const SealedSlab& slab = slab_of(pool, head, pool.form(page));
  const bool stays_open = pool.open(page) != nullptr;
  AlignedBuffer buffer;
  std::uint8_t* open;
  if (stays_open) {
    open = pool.open(page) + open_offset(pool, head);
  } else {
    buffer = AlignedBuffer(static_cast<std::size_t>(open_page_bytes(slab.format, rows.d)));
    open = buffer.as<std::uint8_t>();
  }
  for (std::int64_t i = 0; i < count; ++i) {
    table.write_token(slab.format, rows.d, i, rows.k.data() + chosen[i] * rows.d,
                      rows.v.data() + chosen[i] * rows.d, open);
  }
  if (!stays_open) {
    table.seal_page(slab.format, rows.d, open, pool.sealed(page) + slab.offset);
  }
}

// Pages that go back unless they are taken.
class Fresh {
 public:
  explicit Fresh(PagePool& pool) : pool_(pool) {}
  ~Fresh() {
    for (const PageId page : pages_) pool_.release(page, pool_.open(page) != nullptr);
  }
  Fresh(const Fresh&) = delete;
  Fresh& operator=(const Fresh&) = delete;

  // Full ones hold their rows sealed, where the pool seals.
  PageId add(KvForm form, bool full) {
    pages_.reserve(pages_.size() + 1);
    pages_.push_back(pool_.acquire(0, form));
    if (full && pool_.seals()) {
      pool_.add_sealed(pages_.back());
      pool_.release_open(pages_.back());
    }
    return pages_.back();
  }
  const std::vector<PageId>& pages() const { return pages_; }
  void taken() { pages_.clear(); }

 private:
  PagePool& pool_;
  std::vector<PageId> pages_;
};

}  // namespace

std::int64_t demote_pages(Sequence& sequence, std::int64_t first, std::int64_t end,
                          ThreadPool& threads) {
  PagePool& pool = sequence.pool();
  const std::vector<PageHead> heads = heads_of(pool);
  std::vector<std::int32_t> all(kPageTokens);
  std::iota(all.begin(), all.end(), 0);
  std::int64_t freed = 0;
  for (std::int64_t page = first; page < end; ++page) {
    Fresh fresh(pool);
    constexpr KvForm form = KvForm::demoted;
    const PageId id = fresh.add(form, true);
    threads.run(static_cast<std::int64_t>(heads.size()), [&](std::int64_t item, int) {
      const PageHead& head = heads[static_cast<std::size_t>(item)];
      const Sequence::Parts old = sequence.parts(0, page);
      const SealedSlab &from = slab_of(pool, head, old.form), &to = slab_of(pool, head, form);
      if (from.format == to.format) {  // in 4 bits already: not rounded twice
        std::memcpy(pool.sealed(id) + to.offset, old.sealed + from.offset,
                    static_cast<std::size_t>(sealed_page_bytes(to.format, head.head_dim)));
        return;
      }
      const HeadRows rows = load_page(sequence, head, page);
      store(pool, id, head, rows, all.data(), kPageTokens);
    });
    freed += pool.bytes(sequence.page(0, page)) - pool.bytes(id);
    sequence.replace_page(page, id);
    fresh.taken();
  }
  return freed;
}

void evict_rows(Sequence& sequence, std::int64_t first, std::int64_t keep, const QueryLog& log,
                ThreadPool& threads) {
  PagePool& pool = sequence.pool();
  const std::vector<PageHead> heads = heads_of(pool);
  const std::int64_t begin = first * kPageTokens, end = sequence.slots(0);
  Fresh fresh(pool);
  for (std::int64_t at = 0; at < keep; at += kPageTokens) {
    fresh.add(form_of_page(first + at / kPageTokens), at + kPageTokens <= keep);
  }
  threads.run(static_cast<std::int64_t>(heads.size()), [&](std::int64_t item, int) {
    const PageHead& head = heads[static_cast<std::size_t>(item)];
    const HeadRows rows = load_from(sequence, head, first, end);
    const std::vector<float> queries = last_queries(log, head, sequence.length(), QueryLog::kRows);
    const auto width = static_cast<std::int64_t>(queries.size()) / QueryLog::kRows;
    const std::vector<std::int32_t> chosen =
        choose_rows({end - begin, rows.d, rows.k.data(), QueryLog::kRows, width / rows.d,
                     queries.data(), keep});
    for (std::size_t page = 0; page < fresh.pages().size(); ++page) {
      const auto at = static_cast<std::int64_t>(page) * kPageTokens;
      store(pool, fresh.pages()[page], head, rows, chosen.data() + at,
            std::min<std::int64_t>(kPageTokens, keep - at));
    }
  });
  sequence.replace_from(first, fresh.pages(), begin + keep);
  fresh.taken();
}

}  // namespace musespark

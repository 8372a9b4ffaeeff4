#include "model/rewrite_pages.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/aligned.h"
#include "formats/kv_page_codec.h"
#include "kernels/dispatch.h"
#include "ops/choose_rows.h"

namespace musespark {
namespace {

// One KV head of one layer of the class.
struct Head {
  std::int64_t layer, kv_head, kv_heads, head_dim;
};

std::vector<Head> heads_of(const PagePool& pool) {
  std::vector<Head> heads;
  const auto& layers = pool.layout().layers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].window > 0) continue;
    for (std::int64_t h = 0; h < layers[i].kv_heads(); ++h) {
      heads.push_back({static_cast<std::int64_t>(i), h, layers[i].kv_heads(), layers[i].head_dim});
    }
  }
  return heads;
}

// Rows of a head, keys and values.
struct HeadRows {
  HeadRows(std::int64_t count, std::int64_t d)
      : d(d), k(static_cast<std::size_t>(count * d)), v(static_cast<std::size_t>(count * d)) {}
  std::int64_t d;
  std::vector<float> k, v;
};

const SealedSlab& slab_of(const PagePool& pool, const Head& head, KvForm form) {
  const auto& slabs = pool.place(head.layer).sealed[static_cast<std::size_t>(form)];
  return slabs[static_cast<std::size_t>(head.kv_head)];
}

std::int64_t open_offset(const PagePool& pool, const Head& head) {
  const KvPlace& place = pool.place(head.layer);
  return place.open_offset + head.kv_head * place.open_stride;
}

// All slots of a page of a head.
HeadRows load_page(const Sequence& sequence, const Head& head, std::int64_t page) {
  const PagePool& pool = sequence.pool();
  const Sequence::Parts parts = sequence.parts(0, page);
  const SealedSlab& slab = slab_of(pool, head, parts.form);
  HeadRows rows(kPageTokens, head.head_dim);
  if (parts.open) {
    decode_open(slab.format, rows.d, parts.open + open_offset(pool, head), rows.k.data(),
                rows.v.data());
    return rows;
  }
  std::vector<float> mean(static_cast<std::size_t>(rows.d));
  decode_sealed(slab.format, rows.d, parts.sealed + slab.offset, rows.k.data(), mean.data(),
                rows.v.data());
  for (std::size_t i = 0; i < rows.k.size(); ++i) rows.k[i] += mean[i % mean.size()];
  return rows;
}

// Slots of a head from page `first` on to `end`.
HeadRows load_from(const Sequence& sequence, const Head& head, std::int64_t first,
                   std::int64_t end) {
  HeadRows rows(end - first * kPageTokens, head.head_dim);
  for (std::int64_t page = first; page * kPageTokens < end; ++page) {
    const HeadRows here = load_page(sequence, head, page);
    const std::int64_t count = std::min<std::int64_t>(kPageTokens, end - page * kPageTokens);
    const std::int64_t at = (page - first) * kPageTokens * rows.d;
    std::copy_n(here.k.begin(), count * rows.d, rows.k.begin() + at);
    std::copy_n(here.v.begin(), count * rows.d, rows.v.begin() + at);
  }
  return rows;
}

// Writes `count` rows, those of `chosen`, into a page: sealed where it has such a part and no open
// one, else open.
void store(PagePool& pool, PageId page, const Head& head, const HeadRows& rows,
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

// The last queries of a head's group, ascending: [kRows][group][head_dim].
std::vector<float> last_queries(const QueryLog& log, const Head& head, std::int64_t length) {
  const std::vector<float>& all = log.layers[static_cast<std::size_t>(head.layer)];
  const auto of_head = static_cast<std::int64_t>(all.size()) / head.kv_heads;
  const std::int64_t row = of_head / QueryLog::kRows;
  std::vector<float> out;
  for (std::int64_t position = length - QueryLog::kRows; position < length; ++position) {
    const auto from = all.begin() + head.kv_head * of_head + position % QueryLog::kRows * row;
    out.insert(out.end(), from, from + row);
  }
  return out;
}

}  // namespace

std::int64_t demote_pages(Sequence& sequence, std::int64_t first, std::int64_t end,
                          ThreadPool& threads) {
  PagePool& pool = sequence.pool();
  const std::vector<Head> heads = heads_of(pool);
  std::vector<std::int32_t> all(kPageTokens);
  std::iota(all.begin(), all.end(), 0);
  std::int64_t freed = 0;
  for (std::int64_t page = first; page < end; ++page) {
    Fresh fresh(pool);
    constexpr KvForm form = KvForm::demoted;
    const PageId id = fresh.add(form, true);
    threads.run(static_cast<std::int64_t>(heads.size()), [&](std::int64_t item, int) {
      const Head& head = heads[static_cast<std::size_t>(item)];
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
  const std::vector<Head> heads = heads_of(pool);
  const std::int64_t begin = first * kPageTokens, end = sequence.slots(0);
  Fresh fresh(pool);
  for (std::int64_t at = 0; at < keep; at += kPageTokens) {
    fresh.add(form_of_page(first + at / kPageTokens), at + kPageTokens <= keep);
  }
  threads.run(static_cast<std::int64_t>(heads.size()), [&](std::int64_t item, int) {
    const Head& head = heads[static_cast<std::size_t>(item)];
    const HeadRows rows = load_from(sequence, head, first, end);
    const std::vector<float> queries = last_queries(log, head, sequence.length());
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

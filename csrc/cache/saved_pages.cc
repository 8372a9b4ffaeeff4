#include "cache/saved_pages.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/errors.h"

namespace musespark {
namespace {

constexpr std::int64_t kBlockTokens = 16;  // of the K part, see formats/kv_page.h

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// First page of a sequence of `length` accepted tokens: what Sequence::accept leaves.
std::int64_t first_page(const PagePool& pool, int page_class, std::int64_t length) {
  return first_visible(length, pool.window(page_class)) / kPageTokens;
}

bool is_open(const PagePool& pool, std::int64_t rows) {
  return rows < kPageTokens || !pool.seals();
}

// Pages acquired and not yet handed to a sequence.
class Acquired {
 public:
  Acquired(PagePool& pool, std::size_t most) : pool_(pool) { held_.reserve(most); }
  ~Acquired() {
    for (const auto& [page, open] : held_) pool_.release(page, open);
  }
  Acquired(const Acquired&) = delete;
  Acquired& operator=(const Acquired&) = delete;

  PageId add(int page_class, KvForm form, bool open) {
    const PageId page = pool_.acquire(page_class, form);
    held_.emplace_back(page, true);
    if (open) return page;
    pool_.add_sealed(page);
    held_.back().second = false;
    pool_.release_open(page);
    return page;
  }

 private:
  PagePool& pool_;
  std::vector<std::pair<PageId, bool>> held_;
};

// Gives `second` the first sequence's pages up to page `end`, from where its own end.
void share_until(std::int64_t end, const Sequence::Pages& first, Sequence::Pages* second) {
  auto next = second->first + static_cast<std::int64_t>(second->ids.size());
  for (; next < end; ++next) {
    second->ids.push_back(first.ids[static_cast<std::size_t>(next - first.first)]);
  }
}

void clear_slab(std::uint8_t* slab, KvFormat format, std::int64_t dim, std::int64_t rows) {
  auto* keys = reinterpret_cast<float*>(slab);
  for (std::int64_t token = rows; token < kPageTokens; ++token) {
    float* block = keys + token / kBlockTokens * dim * kBlockTokens + token % kBlockTokens;
    for (std::int64_t d = 0; d < dim; ++d) block[d * kBlockTokens] = 0.0f;
  }
  const std::int64_t bytes = open_page_bytes(format, dim);
  const std::int64_t row = (bytes - open_keys_bytes(dim)) / kPageTokens;
  std::memset(slab + open_keys_bytes(dim) + rows * row, 0,
              static_cast<std::size_t>((kPageTokens - rows) * row));
}

}  // namespace

std::vector<SavedPage> saved_pages(const PagePool& pool, SavedLengths lengths) {
  std::vector<SavedPage> pages;
  for (const bool second : {false, true}) {
    const std::int64_t length = second ? lengths.prompt : lengths.length;
    for (int c = 0; c < pool.classes(); ++c) {
      const std::int64_t shared_from = first_page(pool, c, lengths.length);
      for (std::int64_t i = first_page(pool, c, length); i < pages_of(length); ++i) {
        const std::int64_t rows = std::min<std::int64_t>(kPageTokens, length - i * kPageTokens);
        if (second && rows == kPageTokens && i >= shared_from) continue;
        const std::int64_t bytes =
            is_open(pool, rows) ? pool.open_bytes(c) : pool.sealed_bytes(c, form_of_page(i));
        pages.push_back({c, i, rows, bytes, second});
      }
    }
  }
  return pages;
}

std::vector<std::uint8_t*> locate_pages(const std::vector<SavedPage>& pages, const Sequence& first,
                                        const Sequence* second) {
  std::vector<std::uint8_t*> at;
  for (const SavedPage& page : pages) {
    const Sequence& from = page.of_second ? *second : first;
    const Sequence::Parts parts = from.parts(page.page_class, page.index);
    at.push_back(is_open(from.pool(), page.rows) ? parts.open : parts.sealed);
    if (at.back() == nullptr) {
      throw Error("[saved_pages] page " + std::to_string(page.index) + " of class " +
                  std::to_string(page.page_class) + " is not there");
    }
  }
  return at;
}

PlacedSequences place_pages(PagePool& pool, SavedLengths lengths,
                            const std::vector<SavedPage>& pages) {
  const auto classes = static_cast<std::size_t>(pool.classes());
  std::vector<Sequence::Pages> first(classes), second(classes);
  Acquired acquired(pool, pages.size());
  for (std::size_t c = 0; c < classes; ++c) {
    first[c].first = first_page(pool, static_cast<int>(c), lengths.length);
    second[c].first = first_page(pool, static_cast<int>(c), lengths.prompt);
  }
  for (const SavedPage& page : pages) {
    const auto c = static_cast<std::size_t>(page.page_class);
    if (page.of_second) share_until(page.index, first[c], &second[c]);
    (page.of_second ? second : first)[c].ids.push_back(
        acquired.add(page.page_class, form_of_page(page.index), is_open(pool, page.rows)));
  }
  PlacedSequences placed{Sequence(pool, lengths.length, first), std::nullopt};
  if (lengths.prompt > 0) {
    for (std::size_t c = 0; c < classes; ++c) {
      share_until(pages_of(lengths.prompt), first[c], &second[c]);
    }
    placed.second.emplace(pool, lengths.prompt, second);
  }
  return placed;
}

void clear_unwritten(const PagePool& pool, const SavedPage& page, std::uint8_t* bytes) {
  if (page.rows == kPageTokens) return;
  const auto& layers = pool.layout().layers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const KvPlace& place = pool.place(static_cast<std::int64_t>(i));
    if (place.page_class != page.page_class) continue;
    for (std::int64_t head = 0; head < layers[i].kv_heads(); ++head) {
      std::uint8_t* slab = bytes + place.open_offset + head * place.open_stride;
      clear_slab(slab, layers[i].formats[0], layers[i].head_dim, page.rows);
    }
  }
}

}  // namespace musespark

#include "cache/page_pool.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "base/checked.h"
#include "base/errors.h"

namespace musespark {
namespace {

void check_layer(const KvLayer& layer, std::size_t index, bool floats) {
  const bool sizes =
      layer.kv_heads() >= 1 && layer.head_dim >= 1 && layer.head_dim % 16 == 0 && layer.window >= 0;
  const bool formats = std::all_of(layer.formats.begin(), layer.formats.end(),
                                   [=](KvFormat f) { return (f == KvFormat::f32) == floats; });
  if (sizes && formats) return;
  if (!formats) {
    throw InvalidRequest("[page_pool] layer " + std::to_string(index) +
                         ": f32 is for all KV heads of all layers, or for none");
  }
  throw InvalidRequest("[page_pool] layer " + std::to_string(index) + ": kv_heads " +
                       std::to_string(layer.kv_heads()) + " (at least 1), head_dim " +
                       std::to_string(layer.head_dim) + " (a multiple of 16), window " +
                       std::to_string(layer.window) + " (not negative)");
}

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Neighbouring positions lie in at most so many pages: all but one of them fill whole ones.
std::int64_t most_pages(std::int64_t positions) { return pages_of(positions - 1) + 1; }

}  // namespace

PagePool::PagePool(KvLayout layout, std::int64_t byte_budget)
    : layout_(std::move(layout)), budget_(byte_budget) {
  if (layout_.layers.empty()) throw InvalidRequest("[page_pool] the layout has no layers");
  if (budget_ < 0) {
    throw InvalidRequest("[page_pool] byte_budget " + std::to_string(budget_) + " is negative");
  }
  const auto& first = layout_.layers[0].formats;
  const bool floats = !first.empty() && first[0] == KvFormat::f32;
  std::vector<std::int64_t> windows;
  for (std::size_t i = 0; i < layout_.layers.size(); ++i) {
    check_layer(layout_.layers[i], i, floats);
    windows.push_back(layout_.layers[i].window);
  }
  std::sort(windows.begin(), windows.end());
  windows.erase(std::unique(windows.begin(), windows.end()), windows.end());
  for (const std::int64_t window : windows) {
    classes_.emplace_back();
    classes_.back().window = window;
  }

  for (const KvLayer& layer : layout_.layers) {
    const auto at = std::lower_bound(windows.begin(), windows.end(), layer.window);
    Class& cls = classes_[static_cast<std::size_t>(at - windows.begin())];
    const char* what = "[page_pool] bytes of a page";
    const std::int64_t open = open_page_bytes(layer.formats[0], layer.head_dim);
    KvPlace place{static_cast<int>(at - windows.begin()), cls.open_bytes, open, {}};
    cls.open_bytes = checked_add<InvalidRequest>(
        cls.open_bytes, checked_mul<InvalidRequest>(open, layer.kv_heads(), what), what);
    for (std::size_t form = 0; form < kKvForms; ++form) {
      for (const KvFormat chosen : layer.formats) {
        const KvFormat format = slab_format(static_cast<KvForm>(form), chosen);
        std::int64_t& bytes = cls.sealed_bytes[form];
        place.sealed[form].push_back({format, bytes});
        const std::int64_t slab = sealed_page_bytes(format, layer.head_dim);
        bytes = checked_add<InvalidRequest>(bytes, slab, what);
      }
    }
    places_.push_back(std::move(place));
  }
}

PagePool::Usage PagePool::usage() const {
  const auto pages = static_cast<std::int64_t>(pages_.size() - free_ids_.size());
  return {budget_, in_use_, kept_, allocated_, peak_, pages, open_pages_};
}

std::int64_t PagePool::bytes_for(std::int64_t tokens, std::int64_t step,
                                 std::int64_t evicted) const {
  std::int64_t bytes = 0;
  for (const Class& cls : classes_) {
    const std::int64_t all = pages_of(cls.window == 0 ? tokens - evicted : tokens);
    const std::int64_t touched = std::min(all, most_pages(step));
    std::int64_t held = all;
    if (cls.window > 0) {
      const std::int64_t seen = checked_add(cls.window, step, "[page_pool] window + step") - 1;
      held = std::min(all, most_pages(seen));
    }
    const std::int64_t open = seals() ? std::min(held, touched) : held;
    const char* what = "[page_pool] bytes of a sequence";
    bytes = checked_add(bytes, checked_mul(open, cls.open_bytes, what), what);
    if (held == 0) continue;
    // With the first page, even where a window ends by leaving it behind.
    const auto of = [&](KvForm form) { return cls.sealed_bytes[static_cast<std::size_t>(form)]; };
    bytes = checked_add(bytes, checked_mul(held - 1, of(KvForm::body), what), what);
    bytes = checked_add(bytes, of(KvForm::first), what);
  }
  return bytes;
}

std::int64_t PagePool::shared_bytes(std::int64_t tokens) const {
  const std::int64_t pages = tokens / kPageTokens;
  if (pages == 0) return 0;
  std::int64_t bytes = 0;
  const char* what = "[page_pool] shared bytes";
  for (int c = 0; c < classes(); ++c) {
    if (window(c) > 0) continue;
    bytes = checked_add(bytes, full_bytes(c, KvForm::first), what);
    bytes = checked_add(bytes, checked_mul(pages - 1, full_bytes(c, KvForm::body), what), what);
  }
  return bytes;
}

// Returns spare parts to the system until `bytes` more fit the budget.
bool PagePool::make_room(std::int64_t bytes) noexcept {
  for (Class& cls : classes_) {
    auto& sealed = cls.spare_sealed;
    for (auto* spare : {&sealed[0], &sealed[1], &sealed[2], &cls.spare_open}) {
      while (allocated_ + bytes > budget_ && !spare->empty()) {
        allocated_ -= static_cast<std::int64_t>(spare->back().size());
        spare->pop_back();
      }
    }
  }
  return allocated_ + bytes <= budget_;
}

AlignedBuffer PagePool::take(std::vector<AlignedBuffer>* spare, std::int64_t bytes) {
  while (spare->empty() && !make_room(bytes)) {
    if (reclaim_ && reclaim_()) continue;
    throw MemoryBudgetExceeded("[page_pool] a page of keys and values needs " +
                               std::to_string(bytes) + " bytes; " + std::to_string(in_use_) +
                               " of the budget of " + std::to_string(budget_) +
                               " bytes are in use");
  }
  AlignedBuffer buffer;
  if (!spare->empty()) {
    buffer = std::move(spare->back());
    spare->pop_back();
  } else {
    buffer = AlignedBuffer(static_cast<std::size_t>(bytes));
    allocated_ += bytes;
  }
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  return buffer;
}

void PagePool::keep(std::vector<AlignedBuffer>* spare, AlignedBuffer buffer) noexcept {
  const auto bytes = static_cast<std::int64_t>(buffer.size());
  in_use_ -= bytes;
  try {
    spare->push_back(std::move(buffer));
  } catch (const std::bad_alloc&) {
    allocated_ -= bytes;  // no room to remember it: it goes back to the system
  }
}

PageId PagePool::acquire(int page_class, KvForm form) {
  Class& cls = classes_[static_cast<std::size_t>(page_class)];
  if (free_ids_.empty()) {
    // release() must not fail
    if (free_ids_.capacity() <= pages_.size()) free_ids_.reserve(2 * pages_.size() + 16);
    pages_.emplace_back();
    free_ids_.push_back(static_cast<PageId>(pages_.size() - 1));
  }
  AlignedBuffer open = take(&cls.spare_open, cls.open_bytes);
  const PageId id = free_ids_.back();
  free_ids_.pop_back();
  Page& page = pages_[static_cast<std::size_t>(id)];
  page.page_class = page_class;
  page.form = form;
  page.references = 1;
  page.open_references = 1;
  page.open = std::move(open);
  ++open_pages_;
  return id;
}

void PagePool::add_sealed(PageId id) {
  Page& page = pages_[static_cast<std::size_t>(id)];
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  const auto form = static_cast<std::size_t>(page.form);
  if (!seals() || page.sealed.data() != nullptr) return;
  page.sealed = take(&cls.spare_sealed[form], cls.sealed_bytes[form]);
}

void PagePool::drop_sealed(PageId id) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  if (page.sealed.data() == nullptr) return;
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  keep(&cls.spare_sealed[static_cast<std::size_t>(page.form)],
       std::exchange(page.sealed, AlignedBuffer()));
}

void PagePool::share(PageId id, bool with_open) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  kept_ -= kept_bytes(page);
  ++page.references;
  if (with_open) ++page.open_references;
}

void PagePool::release(PageId id, bool with_open) noexcept {
  if (with_open) release_open(id);
  Page& page = pages_[static_cast<std::size_t>(id)];
  --page.references;
  kept_ += kept_bytes(page);
  if (page.references > 0) return;
  drop_sealed(id);
  free_ids_.push_back(id);  // capacity was reserved when the page was made
}

void PagePool::set_kept(PageId id, bool kept) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  kept_ -= kept_bytes(page);
  page.kept = kept;
  kept_ += kept_bytes(page);
}

std::int64_t PagePool::kept_bytes(const Page& page) const {
  if (!page.kept || page.references != 1) return 0;
  return full_bytes(page.page_class, page.form);
}

std::int64_t PagePool::bytes(PageId id) const {
  const Page& page = pages_[static_cast<std::size_t>(id)];
  const std::int64_t sealed = has_sealed(id) ? sealed_bytes(page.page_class, page.form) : 0;
  return sealed + (page.open_references > 0 ? open_bytes(page.page_class) : 0);
}

void PagePool::release_open(PageId id) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  if (--page.open_references > 0) return;
  keep(&classes_[static_cast<std::size_t>(page.page_class)].spare_open,
       std::exchange(page.open, AlignedBuffer()));
  --open_pages_;
}

void PagePool::copy_open(PageId from, PageId to) noexcept {
  const Page& source = pages_[static_cast<std::size_t>(from)];
  Page& target = pages_[static_cast<std::size_t>(to)];
  std::memcpy(target.open.data(), source.open.data(), source.open.size());
}

}  // namespace musespark

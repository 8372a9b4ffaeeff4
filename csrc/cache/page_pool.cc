#include "cache/page_pool.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
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

bool wants_huge_pages() {
  const char* value = std::getenv("MUSESPARK_KV_HUGE_PAGES");
  if (value == nullptr || std::strcmp(value, "1") == 0) return true;
  if (std::strcmp(value, "0") == 0) return false;
  throw InvalidRequest("[page_pool] MUSESPARK_KV_HUGE_PAGES is '" + std::string(value) +
                       "'; known: 0, 1");
}

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
  const bool huge = wants_huge_pages();
  for (Class& cls : classes_) {
    cls.open = PartArena(cls.open_bytes, huge);
    for (const std::int64_t bytes : cls.sealed_bytes) cls.sealed.emplace_back(bytes, huge);
  }
}

PagePool::Usage PagePool::usage() const {
  const auto pages = static_cast<std::int64_t>(pages_.size() - free_ids_.size());
  std::int64_t mapped = 0;
  for (const Class& cls : classes_) {
    mapped += cls.open.mapped_bytes();
    for (const PartArena& arena : cls.sealed) mapped += arena.mapped_bytes();
  }
  return {budget_, in_use_, kept_, allocated_, peak_, mapped, pages, open_pages_};
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
    for (std::size_t i = 0; i <= cls.sealed.size(); ++i) {
      PartArena* arena = i < cls.sealed.size() ? &cls.sealed[i] : &cls.open;
      while (allocated_ + bytes > budget_ && arena->has_spare()) {
        allocated_ -= arena->discard() * arena->part_bytes();
      }
    }
  }
  return allocated_ + bytes <= budget_;
}

PartArena::Part PagePool::take(PartArena* arena) {
  const std::int64_t bytes = arena->part_bytes();
  while (!arena->has_spare() && !make_room(bytes)) {
    if (reclaim_ && reclaim_()) continue;
    throw MemoryBudgetExceeded("[page_pool] a page of keys and values needs " +
                               std::to_string(bytes) + " bytes; " + std::to_string(in_use_) +
                               " of the budget of " + std::to_string(budget_) +
                               " bytes are in use");
  }
  const bool spare = arena->has_spare();
  const PartArena::Part part = arena->take();
  if (!spare) allocated_ += bytes;
  in_use_ += bytes;
  peak_ = std::max(peak_, in_use_);
  return part;
}

void PagePool::give_back(PartArena* arena, PartArena::Part* part) noexcept {
  in_use_ -= arena->part_bytes();
  arena->give_back(std::exchange(*part, {}));
}

PageId PagePool::acquire(int page_class, KvForm form) {
  Class& cls = classes_[static_cast<std::size_t>(page_class)];
  if (free_ids_.empty()) {
    // release() must not fail
    if (free_ids_.capacity() <= pages_.size()) free_ids_.reserve(2 * pages_.size() + 16);
    pages_.emplace_back();
    free_ids_.push_back(static_cast<PageId>(pages_.size() - 1));
  }
  const PartArena::Part open = take(&cls.open);
  const PageId id = free_ids_.back();
  free_ids_.pop_back();
  Page& page = pages_[static_cast<std::size_t>(id)];
  page.page_class = page_class;
  page.form = form;
  page.references = 1;
  page.open_references = 1;
  page.open = open;
  ++open_pages_;
  return id;
}

void PagePool::add_sealed(PageId id) {
  Page& page = pages_[static_cast<std::size_t>(id)];
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  if (!seals() || page.sealed.data != nullptr) return;
  page.sealed = take(&cls.sealed[static_cast<std::size_t>(page.form)]);
}

void PagePool::drop_sealed(PageId id) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  if (page.sealed.data == nullptr) return;
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  give_back(&cls.sealed[static_cast<std::size_t>(page.form)], &page.sealed);
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
  give_back(&classes_[static_cast<std::size_t>(page.page_class)].open, &page.open);
  --open_pages_;
}

void PagePool::copy_open(PageId from, PageId to) noexcept {
  const Page& source = pages_[static_cast<std::size_t>(from)];
  Page& target = pages_[static_cast<std::size_t>(to)];
  const Class& cls = classes_[static_cast<std::size_t>(source.page_class)];
  std::memcpy(target.open.data, source.open.data, static_cast<std::size_t>(cls.open_bytes));
}

}  // namespace musespark

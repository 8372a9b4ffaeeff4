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

void check_layer(const KvLayer& layer, std::size_t index) {
  const bool good =
      layer.kv_heads >= 1 && layer.head_dim >= 1 && layer.head_dim % 16 == 0 && layer.window >= 0;
  if (good) return;
  throw InvalidRequest("[page_pool] layer " + std::to_string(index) + ": kv_heads " +
                       std::to_string(layer.kv_heads) + " (at least 1), head_dim " +
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

}  // namespace

PagePool::PagePool(KvLayout layout, std::int64_t byte_budget)
    : layout_(std::move(layout)), budget_(byte_budget) {
  if (layout_.layers.empty()) throw InvalidRequest("[page_pool] the layout has no layers");
  if (budget_ < 0) {
    throw InvalidRequest("[page_pool] byte_budget " + std::to_string(budget_) + " is negative");
  }
  std::vector<std::int64_t> windows;
  for (std::size_t i = 0; i < layout_.layers.size(); ++i) {
    check_layer(layout_.layers[i], i);
    windows.push_back(layout_.layers[i].window);
  }
  std::sort(windows.begin(), windows.end());
  windows.erase(std::unique(windows.begin(), windows.end()), windows.end());
  for (const std::int64_t window : windows) classes_.push_back({window, 0, 0});

  for (const KvLayer& layer : layout_.layers) {
    const auto at = std::lower_bound(windows.begin(), windows.end(), layer.window);
    Class& cls = classes_[static_cast<std::size_t>(at - windows.begin())];
    const char* what = "[page_pool] bytes of a page";
    const std::int64_t open = open_page_bytes(layout_.format, layer.head_dim);
    const std::int64_t sealed = sealed_page_bytes(layout_.format, layer.head_dim);
    places_.push_back(
        {static_cast<int>(at - windows.begin()), cls.open_bytes, open, cls.sealed_bytes, sealed});
    cls.open_bytes = checked_add<InvalidRequest>(
        cls.open_bytes, checked_mul<InvalidRequest>(open, layer.kv_heads, what), what);
    cls.sealed_bytes = checked_add<InvalidRequest>(
        cls.sealed_bytes, checked_mul<InvalidRequest>(sealed, layer.kv_heads, what), what);
  }
  const bool huge = wants_huge_pages();
  for (Class& cls : classes_) {
    cls.open = PartArena(cls.open_bytes, huge);
    cls.sealed = PartArena(cls.sealed_bytes, huge);
  }
}

PagePool::Usage PagePool::usage() const {
  const auto pages = static_cast<std::int64_t>(pages_.size() - free_ids_.size());
  std::int64_t mapped = 0;
  for (const Class& cls : classes_) {
    mapped += cls.open.mapped_bytes() + cls.sealed.mapped_bytes();
  }
  return {budget_, in_use_, kept_, allocated_, peak_, mapped, pages, open_pages_};
}

std::int64_t PagePool::bytes_for(std::int64_t tokens, std::int64_t step) const {
  const std::int64_t all = pages_of(tokens);
  // A step touches at most the page it begins in, those it fills and the one it ends in.
  const std::int64_t touched = std::min(all, pages_of(step) + 1);
  std::int64_t bytes = 0;
  for (const Class& cls : classes_) {
    std::int64_t held = all;
    if (cls.window > 0) {
      const std::int64_t seen = checked_add(cls.window, step, "[page_pool] window + step");
      held = std::min(all, pages_of(seen) + 1);
    }
    const std::int64_t open = layout_.format == KvFormat::f32 ? held : std::min(held, touched);
    const char* what = "[page_pool] bytes of a sequence";
    bytes = checked_add(bytes, checked_mul(open, cls.open_bytes, what), what);
    bytes = checked_add(bytes, checked_mul(held, cls.sealed_bytes, what), what);
  }
  return bytes;
}

// Returns spare parts to the system until `bytes` more fit the budget.
bool PagePool::make_room(std::int64_t bytes) noexcept {
  for (Class& cls : classes_) {
    for (PartArena* arena : {&cls.sealed, &cls.open}) {
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

PageId PagePool::acquire(int page_class) {
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
  page.references = 1;
  page.open_references = 1;
  page.open = open;
  ++open_pages_;
  return id;
}

void PagePool::add_sealed(PageId id) {
  Page& page = pages_[static_cast<std::size_t>(id)];
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  if (cls.sealed_bytes == 0 || page.sealed.data != nullptr) return;
  page.sealed = take(&cls.sealed);
}

void PagePool::drop_sealed(PageId id) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  if (page.sealed.data == nullptr) return;
  give_back(&classes_[static_cast<std::size_t>(page.page_class)].sealed, &page.sealed);
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
  const Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  return layout_.format == KvFormat::f32 ? cls.open_bytes : cls.sealed_bytes;
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

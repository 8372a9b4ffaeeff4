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

// Neighbouring positions lie in at most so many pages: all but one of them fill whole ones.
std::int64_t most_pages(std::int64_t positions) { return pages_of(positions - 1) + 1; }

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
  for (const std::int64_t window : windows) classes_.push_back({window, 0, 0, {}, {}});

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
}

PagePool::Usage PagePool::usage() const {
  const auto pages = static_cast<std::int64_t>(pages_.size() - free_ids_.size());
  return {budget_, in_use_, kept_, allocated_, peak_, pages, open_pages_};
}

std::int64_t PagePool::bytes_for(std::int64_t tokens, std::int64_t step) const {
  const std::int64_t all = pages_of(tokens);
  const std::int64_t touched = std::min(all, most_pages(step));
  std::int64_t bytes = 0;
  for (const Class& cls : classes_) {
    std::int64_t held = all;
    if (cls.window > 0) {
      const std::int64_t seen = checked_add(cls.window, step, "[page_pool] window + step") - 1;
      held = std::min(all, most_pages(seen));
    }
    const std::int64_t open = layout_.format == KvFormat::f32 ? held : std::min(held, touched);
    const char* what = "[page_pool] bytes of a sequence";
    bytes = checked_add(bytes, checked_mul(open, cls.open_bytes, what), what);
    bytes = checked_add(bytes, checked_mul(held, cls.sealed_bytes, what), what);
  }
  return bytes;
}

std::int64_t PagePool::shared_bytes(std::int64_t tokens) const {
  std::int64_t bytes = 0;
  for (const Class& cls : classes_) {
    if (cls.window > 0) continue;
    const std::int64_t page = layout_.format == KvFormat::f32 ? cls.open_bytes : cls.sealed_bytes;
    bytes = checked_add(bytes, checked_mul(tokens / kPageTokens, page, "[page_pool] shared bytes"),
                        "[page_pool] shared bytes");
  }
  return bytes;
}

// Returns spare parts to the system until `bytes` more fit the budget.
bool PagePool::make_room(std::int64_t bytes) noexcept {
  for (Class& cls : classes_) {
    for (auto* spare : {&cls.spare_sealed, &cls.spare_open}) {
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

PageId PagePool::acquire(int page_class) {
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
  page.references = 1;
  page.open_references = 1;
  page.open = std::move(open);
  ++open_pages_;
  return id;
}

void PagePool::add_sealed(PageId id) {
  Page& page = pages_[static_cast<std::size_t>(id)];
  Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  if (cls.sealed_bytes == 0 || page.sealed.data() != nullptr) return;
  page.sealed = take(&cls.spare_sealed, cls.sealed_bytes);
}

void PagePool::drop_sealed(PageId id) noexcept {
  Page& page = pages_[static_cast<std::size_t>(id)];
  if (page.sealed.data() == nullptr) return;
  keep(&classes_[static_cast<std::size_t>(page.page_class)].spare_sealed,
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
  const Class& cls = classes_[static_cast<std::size_t>(page.page_class)];
  return layout_.format == KvFormat::f32 ? cls.open_bytes : cls.sealed_bytes;
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

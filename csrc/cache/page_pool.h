// The memory of all keys and values: pages of 64 positions, under one byte budget.
//
// Layers with the same attention window form a page class; one page of a class holds 64 positions
// of every layer and KV head of that class. A page has up to two parts, each one allocation:
//
//     open     the rows as written (formats/kv_page.h); while the page is filled and until its last
//              token is accepted; for KvFormat::f32 always
//     sealed   not for f32: the packed 64 rows, from the step that fills the page
//
//     part:    layers of the class ascending x [KV heads] x slab
//
// A page is of a form (formats/kv_page.h), and so has the sealed part of that form.
//
// Pages are shared between sequences by reference counts: one for the page and one for those that
// still want its open part. Not thread-safe: one driver thread owns the pool and its sequences; the
// forward path's threads only read addresses. Parts given back are kept for reuse and returned to
// the system when another class needs the budget (cache/part_arena.h).
//
// Large caches lie in huge pages where the system gives them on request (on Linux: unless
// /sys/kernel/mm/transparent_hugepage/enabled says never); MUSESPARK_KV_HUGE_PAGES=0 asks for none.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cache/part_arena.h"
#include "formats/kv_page.h"

namespace musespark {

// Keys and values of one layer. head_dim is padded to a multiple of 16; window as in AttentionSpec.
struct KvLayer {
  std::int64_t head_dim;
  std::int64_t window;
  std::vector<KvFormat> formats;  // of each KV head
  std::int64_t kv_heads() const { return static_cast<std::int64_t>(formats.size()); }
  bool operator==(const KvLayer&) const = default;
};

struct KvLayout {
  std::vector<KvLayer> layers;  // f32 for all heads of all layers, or for none
  bool operator==(const KvLayout&) const = default;
};

using PageId = std::int32_t;

// Where a layer's slabs lie in the parts of its class. Open: offset + KV head * stride, in bytes.
struct KvPlace {
  int page_class;
  std::int64_t open_offset, open_stride;
  std::array<std::vector<SealedSlab>, kKvForms> sealed;  // [form][KV head]
};

class PagePool {
 public:
  // Throws InvalidRequest for a layout without layers, sizes below 1, formats that do not go
  // together, or a negative budget.
  PagePool(KvLayout layout, std::int64_t byte_budget);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Whether full pages are sealed; else all is f32 and stays open.
  bool seals() const { return layout_.layers[0].formats[0] != KvFormat::f32; }
  const KvLayout& layout() const { return layout_; }

  // Page classes: full attention (window 0) first if any layer has it, then by window ascending.
  int classes() const { return static_cast<int>(classes_.size()); }
  std::int64_t window(int page_class) const { return classes_[page_class].window; }
  const KvPlace& place(std::int64_t layer) const { return places_[layer]; }
  std::int64_t open_bytes(int page_class) const { return classes_[page_class].open_bytes; }
  std::int64_t sealed_bytes(int page_class, KvForm form) const {
    return classes_[page_class].sealed_bytes[static_cast<int>(form)];
  }
  // Of a full page whose last token is accepted.
  std::int64_t full_bytes(int page_class, KvForm form) const {
    return seals() ? sealed_bytes(page_class, form) : open_bytes(page_class);
  }

  struct Usage {
    std::int64_t budget;      // bytes
    std::int64_t in_use;      // bytes of parts that sequences or the prefix tree hold
    std::int64_t kept;        // of these, of pages that nobody but the tree holds
    std::int64_t allocated;   // in_use and parts kept for reuse; never above the budget
    std::int64_t peak;        // highest in_use so far
    std::int64_t mapped;      // address space of all parts, and of those that are still to come
    std::int64_t pages;       // pages held
    std::int64_t open_pages;  // of these, with an open part
  };
  Usage usage() const;

  // The most bytes one unshared sequence of `tokens` tokens ever holds when it is written in steps
  // of at most `step` tokens and each step is accepted before the next: what admission reserves.
  // `evicted` of the tokens have no rows in the class without a window.
  std::int64_t bytes_for(std::int64_t tokens, std::int64_t step, std::int64_t evicted = 0) const;

  // Bytes that sequences whose first `tokens` tokens are the same have once, not each: full pages
  // of classes without a window.
  std::int64_t shared_bytes(std::int64_t tokens) const;

  // Who gives pages back when the budget is used up: asked again and again, until there is room or
  // it returns false.
  void on_full(std::function<bool()> reclaim) { reclaim_ = std::move(reclaim); }

  // --- for Sequence ---

  // A page with an open part and one reference of each kind. Throws MemoryBudgetExceeded with the
  // numbers; nothing has changed then.
  PageId acquire(int page_class, KvForm form);
  // Gives the page its sealed part (not for f32), if it has none yet. Throws as acquire does.
  void add_sealed(PageId page);
  void drop_sealed(PageId page) noexcept;
  void share(PageId page, bool with_open) noexcept;
  void release(PageId page, bool with_open) noexcept;
  void release_open(PageId page) noexcept;
  // Whether the prefix tree holds one of the page's references.
  void set_kept(PageId page, bool kept) noexcept;
  int references(PageId page) const { return pages_[page].references; }
  KvForm form(PageId page) const { return pages_[page].form; }
  bool kept(PageId page) const { return pages_[page].kept; }
  std::int64_t bytes(PageId page) const;  // of its parts
  bool has_sealed(PageId page) const { return pages_[page].sealed.data != nullptr; }

  // The parts of a page, null where it has no such part.
  std::uint8_t* open(PageId page) { return pages_[page].open.data; }
  std::uint8_t* sealed(PageId page) { return pages_[page].sealed.data; }
  // Copies the open part of `from` into `to` (same class).
  void copy_open(PageId from, PageId to) noexcept;

 private:
  struct Class {
    std::int64_t window;
    std::int64_t open_bytes = 0;
    std::array<std::int64_t, kKvForms> sealed_bytes{};  // 0 for f32
    PartArena open = {0, false};
    std::vector<PartArena> sealed = {};  // [form]
  };
  struct Page {
    int page_class = 0;
    KvForm form = KvForm::body;
    int references = 0;
    int open_references = 0;
    bool kept = false;
    PartArena::Part open;
    PartArena::Part sealed;
  };

  PartArena::Part take(PartArena* arena);
  void give_back(PartArena* arena, PartArena::Part* part) noexcept;
  bool make_room(std::int64_t bytes) noexcept;
  // Bytes of a page that the tree alone holds; 0 of another.
  std::int64_t kept_bytes(const Page& page) const;

  KvLayout layout_;
  std::vector<Class> classes_;
  std::vector<KvPlace> places_;
  std::vector<Page> pages_;
  std::vector<PageId> free_ids_;
  std::function<bool()> reclaim_;
  std::int64_t budget_;
  std::int64_t in_use_ = 0, kept_ = 0, allocated_ = 0, peak_ = 0, open_pages_ = 0;
};

}  // namespace musespark

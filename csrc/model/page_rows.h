// Rows of keys and values out of a sequence's pages, for what is done beside attention: in the
// class without a window, in floats, means added back.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/sequence.h"
#include "model/text_model.h"

namespace musespark {

// One KV head of one layer of the class.
struct PageHead {
  std::int64_t layer, kv_head, kv_heads, head_dim;
};

// By layer, then KV head.
std::vector<PageHead> heads_of(const PagePool& pool);

// Rows of a head, keys and values.
struct HeadRows {
  HeadRows(std::int64_t count, std::int64_t d)
      : d(d), k(static_cast<std::size_t>(count * d)), v(static_cast<std::size_t>(count * d)) {}
  std::int64_t d;
  std::vector<float> k, v;
};

const SealedSlab& slab_of(const PagePool& pool, const PageHead& head, KvForm form);
// Where the head's part of an open page begins.
std::int64_t open_offset(const PagePool& pool, const PageHead& head);

// All slots of a page of a head.
HeadRows load_page(const Sequence& sequence, const PageHead& head, std::int64_t page);
// Slots of a head from page `first` on to `end`.
HeadRows load_from(const Sequence& sequence, const PageHead& head, std::int64_t first,
                   std::int64_t end);

// The last `count` queries of a head's group, of a sequence of `length` tokens, ascending:
// [count][group][head_dim]. count <= min(kRows, length).
std::vector<float> last_queries(const QueryLog& log, const PageHead& head, std::int64_t length,
                                std::int64_t count);

}  // namespace musespark

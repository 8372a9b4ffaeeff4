#include "model/page_rows.h"

#include <algorithm>

#include "formats/kv_page_codec.h"

namespace musespark {

std::vector<PageHead> heads_of(const PagePool& pool) {
  std::vector<PageHead> heads;
  const auto& layers = pool.layout().layers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].window > 0) continue;
    for (std::int64_t h = 0; h < layers[i].kv_heads(); ++h) {
      heads.push_back({static_cast<std::int64_t>(i), h, layers[i].kv_heads(), layers[i].head_dim});
    }
  }
  return heads;
}

const SealedSlab& slab_of(const PagePool& pool, const PageHead& head, KvForm form) {
  const auto& slabs = pool.place(head.layer).sealed[static_cast<std::size_t>(form)];
  return slabs[static_cast<std::size_t>(head.kv_head)];
}

std::int64_t open_offset(const PagePool& pool, const PageHead& head) {
  const KvPlace& place = pool.place(head.layer);
  return place.open_offset + head.kv_head * place.open_stride;
}

HeadRows load_page(const Sequence& sequence, const PageHead& head, std::int64_t page) {
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

HeadRows load_from(const Sequence& sequence, const PageHead& head, std::int64_t first,
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

std::vector<float> last_queries(const QueryLog& log, const PageHead& head, std::int64_t length,
                                std::int64_t count) {
  const std::vector<float>& all = log.layers[static_cast<std::size_t>(head.layer)];
  const auto of_head = static_cast<std::int64_t>(all.size()) / head.kv_heads;
  const std::int64_t row = of_head / QueryLog::kRows;
  std::vector<float> out;
  for (std::int64_t position = length - count; position < length; ++position) {
    const auto from = all.begin() + head.kv_head * of_head + position % QueryLog::kRows * row;
    out.insert(out.end(), from, from + row);
  }
  return out;
}

}  // namespace musespark

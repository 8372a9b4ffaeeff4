// The attention kernels: all page formats, head dimensions with and without an odd factor, rows
// that see all, part or nothing of a chunk, and slots that hold what no row may touch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/hash.h"
#include "cases.h"
#include "kernels/attention/attention.h"

namespace musespark::digests {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  const char* name;
  KvFormat format;
  std::int64_t dim, length, rows, window;
  float softcap;
  float odd;  // a number that some keys, values and queries hold; 0: none
};
constexpr Case kCases[] = {
    {"f32", KvFormat::f32, 16, 70, 5, 0, 0.0f, 0.0f},
    {"f32_wide", KvFormat::f32, 80, 600, 9, 100, 20.0f, 0.0f},
    {"kv8_one_row", KvFormat::kv8, 64, 700, 1, 0, 0.0f, 0.0f},
    {"kv8_rows", KvFormat::kv8, 48, 300, 23, 0, 0.0f, 0.0f},
    {"kv8_window", KvFormat::kv8, 128, 590, 11, 130, 30.0f, 0.0f},
    {"kv8_many", KvFormat::kv8, 32, 1100, 70, 0, 0.0f, 0.0f},
    {"kv8_nan", KvFormat::kv8, 32, 200, 7, 0, 0.0f, std::numeric_limits<float>::quiet_NaN()},
    {"kv8_infinity", KvFormat::kv8, 32, 200, 7, 0, 0.0f, kInfinity},
    {"kv8_huge", KvFormat::kv8, 32, 200, 7, 0, 0.0f, 1e30f},
    {"kv8_tiny", KvFormat::kv8, 32, 200, 7, 0, 0.0f, 1e-33f},
    {"kv8_largest", KvFormat::kv8, 512, 130, 3, 0, 0.0f, 0.0f},
    {"kv8v4_one_row", KvFormat::kv8v4, 64, 700, 1, 0, 0.0f, 0.0f},
    {"kv8v4_rows", KvFormat::kv8v4, 48, 300, 23, 0, 0.0f, 0.0f},
    {"kv8v4_window", KvFormat::kv8v4, 128, 590, 11, 130, 30.0f, 0.0f},
    {"kv8v4_infinity", KvFormat::kv8v4, 32, 200, 7, 0, 0.0f, kInfinity},
    {"kv4_one_row", KvFormat::kv4, 64, 700, 1, 0, 0.0f, 0.0f},
    {"kv4_rows", KvFormat::kv4, 80, 300, 23, 0, 0.0f, 0.0f},
    {"kv4_window", KvFormat::kv4, 128, 590, 11, 130, 30.0f, 0.0f},
    {"kv4_many", KvFormat::kv4, 32, 1100, 70, 0, 0.0f, 0.0f},
    {"kv4_nan", KvFormat::kv4, 32, 200, 7, 0, 0.0f, std::numeric_limits<float>::quiet_NaN()},
    {"kv4_huge", KvFormat::kv4, 16, 200, 7, 0, 0.0f, 1e30f},
    {"kv4_tiny", KvFormat::kv4, 16, 200, 7, 0, 0.0f, 1e-33f},
    {"kv4_largest", KvFormat::kv4, 512, 130, 3, 0, 0.0f, 0.0f},
};

// The pages of one head, made by the level's own write_token and seal_page.
struct Cache {
  Cache(const KernelTable& kernels, const Case& c, const float* keys, const float* values) {
    for (std::int64_t begin = 0; begin < c.length; begin += kPageTokens) {
      const std::int64_t bytes = open_page_bytes(c.format, c.dim);
      open.push_back(std::make_unique<Guarded>(bytes));
      auto* page = open.back()->as<std::uint8_t>();
      std::memset(page, 0xff, static_cast<std::size_t>(bytes));  // unwritten slots: NaN
      for (std::int64_t p = begin; p < std::min(begin + kPageTokens, c.length); ++p) {
        kernels.write_token(c.format, c.dim, p - begin, keys + p * c.dim, values + p * c.dim, page);
      }
      sealed.push_back(nullptr);
      if (c.format == KvFormat::f32 || begin + kPageTokens > c.length) continue;
      sealed.back() = std::make_unique<Guarded>(sealed_page_bytes(c.format, c.dim));
      kernels.seal_page(c.format, c.dim, page, sealed.back()->as<std::uint8_t>());
    }
  }

  Bytes bytes() {
    Bytes out;
    for (auto* pages : {&open, &sealed}) {
      for (auto& page : *pages) {
        if (page) append(out, page->as<std::uint8_t>(), page->size());
      }
    }
    return out;
  }

  std::vector<std::unique_ptr<Guarded>> open, sealed;
};

struct Queries {
  explicit Queries(const Case& c) : ldq(c.dim + 4), q((c.rows - 1) * ldq + c.dim), sink(c.rows) {}
  std::int64_t ldq;
  Array<float> q;
  Array<float> sink;
  std::vector<std::int64_t> pos, lo, hi;
};

void fill_queries(Random& random, const Case& c, Queries& to) {
  random.fill(to.q.span(), 1.0f / 4.0f);
  random.fill(to.sink.span());
  if (c.odd != 0.0f) to.q[to.ldq + 3] = c.odd;
  for (std::int64_t r = 0; r < c.rows; ++r) {
    // Three rows a position, as heads of a group; the last ones at the sequence's end.
    const std::int64_t pos = std::max<std::int64_t>(0, c.length - 1 - (c.rows - 1 - r) / 3);
    to.pos.push_back(pos);
    to.lo.push_back(c.window ? std::max<std::int64_t>(0, pos - c.window + 1) : 0);
    to.hi.push_back(pos);
    if (r == 4) to.lo.back() = pos + 1;  // sees nothing
  }
}

// Partials and outputs of one chunk.
struct Partials {
  explicit Partials(const Case& c) : state(c.rows), o(c.rows * c.dim) {}
  Array<AttentionPartial> state;
  Array<float> o;
};

void attend(const KernelTable& kernels, const Case& c, Cache& cache, Queries& queries,
            std::int64_t chunk, Partials& out) {
  const std::uint8_t* open[kPagesPerChunk] = {};
  const std::uint8_t* sealed[kPagesPerChunk] = {};
  for (int i = 0; i < kPagesPerChunk; ++i) {
    const auto p = static_cast<std::size_t>(chunk * kPagesPerChunk + i);
    if (p >= cache.open.size()) break;
    open[i] = cache.open[p]->as<std::uint8_t>();
    if (cache.sealed[p]) sealed[i] = cache.sealed[p]->as<std::uint8_t>();
  }
  Guarded scratch(attention_scratch_bytes(c.rows, c.dim) / 64 * 64 + 64);
  AttendChunkArgs args{};
  const std::vector<KvFormat> formats(2 * kPagesPerChunk, c.format);
  args.formats = formats.data();
  args.head_dim = c.dim;
  args.rows = c.rows;
  args.q = queries.q.data();
  args.ldq = queries.ldq;
  args.pos = queries.pos.data();
  args.lo = queries.lo.data();
  args.hi = queries.hi.data();
  args.chunk = chunk;
  args.open = open;
  args.sealed = c.format == KvFormat::f32 ? nullptr : sealed;
  args.softcap = c.softcap;
  args.partial = out.state.data();
  args.o = out.o.data();
  args.scratch = scratch.as<std::uint8_t>();
  kernels.attend_chunk(&args);
}

Bytes run(const KernelTable& kernels, const Case& c, Cache& cache, Queries& queries) {
  Bytes bytes;
  Partials total(c);
  for (std::int64_t r = 0; r < c.rows; ++r) total.state[r] = {-kInfinity, 0.0f};
  for (std::int64_t chunk = 0; chunk * kMergeChunk < c.length; ++chunk) {
    Partials part(c);
    attend(kernels, c, cache, queries, chunk, part);
    append(bytes, part.state.data(), c.rows);
    append(bytes, part.o.data(), c.rows * c.dim);
    kernels.attention_merge(c.rows, c.dim, total.state.data(), total.o.data(), part.state.data(),
                            part.o.data());
  }
  const float* const sinks[] = {nullptr, queries.sink.data()};
  for (const float* sink : sinks) {
    const std::int64_t used = c.dim - 5, ldo = c.dim + 1;
    Array<float> out((c.rows - 1) * ldo + used);
    kernels.attention_finish(c.rows, c.dim, total.state.data(), total.o.data(), sink, out.data(),
                             ldo, used);
    append(bytes, out.data(), out.size());
  }
  return bytes;
}

void attention_case(const Case& c) {
  Random random(xxh64(c.name, std::strlen(c.name)));
  Array<float> keys(c.length * c.dim), values(c.length * c.dim);
  random.fill(keys.span());
  random.fill(values.span());
  for (std::int64_t p = 0; p < c.length; ++p) keys[p * c.dim] += 3.0f;  // a channel with a mean
  if (c.odd != 0.0f) {
    keys[20 * c.dim + 1] = c.odd;
    values[70 * c.dim + 2] = c.odd;
    for (std::int64_t i = 0; i < c.dim; ++i) values[130 * c.dim + i] = 0.0f;
  }
  Queries queries(c);
  fill_queries(random, c, queries);
  compare_levels(std::string("pages/") + c.name, [&](const KernelTable& kernels) {
    return Cache(kernels, c, keys.data(), values.data()).bytes();
  });
  Cache cache(kernel_table(Isa::scalar), c, keys.data(), values.data());
  compare_levels(std::string("attention/") + c.name,
                 [&](const KernelTable& kernels) { return run(kernels, c, cache, queries); });
}

}  // namespace

void attention_digests() {
  for (const Case& c : kCases) attention_case(c);
}

}  // namespace musespark::digests

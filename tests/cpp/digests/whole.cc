// Attention over whole texts: the ends of pages, of tiles of rows and of channels, and numbers that
// are none.
#include <limits>

#include "base/hash.h"
#include "cases.h"
#include "kernels/attention/whole.h"

namespace musespark::digests {
namespace {

struct Case {
  const char* name;
  std::int64_t count, rows, dim;
  float scale;  // of the queries
  float odd;    // a number that a key, a value and a query hold; 0: none
};
constexpr Case kCases[] = {
    {"one", 1, 1, 8, 1.0f, 0.0f},
    {"page", 64, 16, 64, 1.0f, 0.0f},
    {"edges", 65, 17, 72, 3.0f, 0.0f},
    {"rows", 257, 70, 80, 30.0f, 0.0f},
    {"flat", 300, 33, 16, 1e-3f, 0.0f},
    {"widest", 130, 9, 512, 1.0f, 0.0f},
    {"nan", 100, 20, 32, 1.0f, std::numeric_limits<float>::quiet_NaN()},
    {"infinity", 100, 20, 32, 1.0f, std::numeric_limits<float>::infinity()},
    {"huge", 100, 20, 32, 1.0f, 3e37f},
};

struct Head {
  explicit Head(const Case& c)
      : pages((c.count + kWholePage - 1) / kWholePage),
        channels((c.dim + 15) / 16 * 16),
        keys(pages * kWholePage * ((c.dim + 63) / 64 * 64)),
        values(pages * kWholePage * channels),
        key_scale(pages),
        value_scale(channels),
        value_mean(channels),
        head{c.count,          c.dim,
             keys.data(),      values.data(),
             key_scale.data(), value_scale.data(),
             value_mean.data()} {}

  std::int64_t pages, channels;
  Array<std::uint8_t> keys, values;
  Array<float> key_scale, value_scale, value_mean;
  WholeHead head;
};

void whole_case(const Case& c) {
  Random random(xxh64(c.name, std::strlen(c.name)));
  const std::int64_t ld = c.dim + 3;
  Array<float> keys((c.count - 1) * ld + c.dim), values(keys.size()), queries(c.rows * c.dim);
  random.fill(keys.span());
  random.fill(values.span());
  random.fill(queries.span(), c.scale);
  if (c.odd != 0.0f) {
    keys[c.count / 2 * ld + 1] = c.odd;
    values[c.count / 3 * ld + 2] = c.odd;
    queries[2 * c.dim + 3] = c.odd;
  }
  compare_levels(std::string("whole/") + c.name, [&](const KernelTable& kernels) {
    Head head(c);
    Array<std::uint8_t> scratch(whole_scratch_bytes(c.count, c.dim));
    Array<float> out(c.rows * c.dim);
    kernels.whole_pack(keys.data(), values.data(), ld, &head.head);
    kernels.whole_attend(&head.head, queries.data(), c.dim, c.rows, 0.2f, out.data(), c.dim,
                         scratch.data());
    Bytes bytes;
    append(bytes, out.data(), out.size());
    return bytes;
  });
}

}  // namespace

void whole_digests() {
  for (const Case& c : kCases) whole_case(c);
}

}  // namespace musespark::digests

// _core.testing: the attention kernels of every level.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "kernels/dispatch.h"
#include "kv_formats.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Slab = std::optional<Array<std::uint8_t>>;

const KernelTable& level(const std::string& isa) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa == isa_name(static_cast<Isa>(i))) return kernel_table(static_cast<Isa>(i));
  }
  throw InvalidRequest("no instruction set is called " + isa);
}

KvFormat format_of(const std::string& name) {
  if (const auto format = find_kv_format(name)) return *format;
  throw InvalidRequest("no KV format is called " + name);
}

// Of a chunk's pages and the next's: one name for all, or a list of eight.
std::vector<KvFormat> page_formats(const py::object& format) {
  std::vector<KvFormat> formats(2 * kPagesPerChunk, KvFormat::kv8);
  if (py::isinstance<py::str>(format)) {
    formats.assign(formats.size(), format_of(format.cast<std::string>()));
    return formats;
  }
  const auto names = format.cast<std::vector<std::string>>();
  if (names.size() != kPagesPerChunk) throw InvalidRequest("format: one for each of 8 pages");
  for (std::size_t p = 0; p < names.size(); ++p) formats[p] = format_of(names[p]);
  return formats;
}

void need(bool condition, const char* what) {
  if (!condition) throw InvalidRequest(what);
}

// bytes(p): of a slab of page p.
template <class Bytes>
std::vector<const std::uint8_t*> slabs_of(const std::vector<Slab>& slabs, Bytes bytes) {
  need(slabs.size() == kPagesPerChunk, "a chunk has 8 slabs (None where there is none)");
  std::vector<const std::uint8_t*> pointers;
  for (const Slab& slab : slabs) {
    if (slab) need(slab->size() == bytes(pointers.size()), "a slab of another size");
    pointers.push_back(slab ? slab->data() : nullptr);
  }
  return pointers;
}

struct Partials {
  std::vector<AttentionPartial> rows;
  Array<float> o;

  py::tuple to_tuple() const {
    Array<float> max(static_cast<py::ssize_t>(rows.size()));
    Array<float> sum(static_cast<py::ssize_t>(rows.size()));
    for (std::size_t r = 0; r < rows.size(); ++r) {
      max.mutable_data()[r] = rows[r].max;
      sum.mutable_data()[r] = rows[r].sum;
    }
    return py::make_tuple(max, sum, o);
  }
};

Partials partials_of(const Array<float>& max, const Array<float>& sum, const Array<float>& o) {
  need(max.ndim() == 1 && sum.ndim() == 1 && o.ndim() == 2 && max.size() == sum.size() &&
           o.shape(0) == max.size(),
       "partials: max [R], sum [R], o [R][D]");
  Partials partials{{}, Array<float>({o.shape(0), o.shape(1)})};
  for (py::ssize_t r = 0; r < max.size(); ++r) {
    partials.rows.push_back({max.data()[r], sum.data()[r]});
  }
  std::memcpy(partials.o.mutable_data(), o.data(), static_cast<std::size_t>(o.nbytes()));
  return partials;
}

// Scratch and results start as NaN patterns, so that a kernel that trusts either is found.
// format: of every page, or one for each of the chunk's eight.
py::tuple attend_chunk(const std::string& isa, const py::object& format, const Array<float>& q,
                       const Array<std::int64_t>& pos, const Array<std::int64_t>& lo,
                       const Array<std::int64_t>& hi, std::int64_t chunk,
                       const std::vector<Slab>& open, const std::vector<Slab>& sealed,
                       float softcap, std::int64_t head_dim) {
  const FloatEnv env;
  need(q.ndim() == 2 && pos.size() == q.shape(0) && lo.size() == q.shape(0) &&
           hi.size() == q.shape(0) && head_dim <= q.shape(1),
       "attend_chunk: q [R][>= head_dim], pos, lo, hi [R]");
  const auto formats = page_formats(format);
  const bool floats = formats[0] == KvFormat::f32;
  const auto open_slabs =
      slabs_of(open, [&](std::size_t p) { return open_page_bytes(formats[p], head_dim); });
  const auto sealed_slabs =
      slabs_of(sealed, [&](std::size_t p) { return sealed_page_bytes(formats[p], head_dim); });
  const std::int64_t rows = q.shape(0);
  Partials out{std::vector<AttentionPartial>(static_cast<std::size_t>(rows), {NAN, NAN}),
               Array<float>({rows, head_dim})};
  std::memset(out.o.mutable_data(), 0xff, static_cast<std::size_t>(out.o.nbytes()));
  const auto bytes = static_cast<std::size_t>(attention_scratch_bytes(rows, head_dim));
  AlignedBuffer scratch(bytes + 64);
  std::memset(scratch.data(), 0xff, bytes + 64);
  const AttendChunkArgs args = {head_dim,
                                rows,
                                q.data(),
                                q.shape(1),
                                pos.data(),
                                lo.data(),
                                hi.data(),
                                chunk,
                                formats.data(),
                                open_slabs.data(),
                                floats ? nullptr : sealed_slabs.data(),
                                nullptr,
                                softcap,
                                out.rows.data(),
                                out.o.mutable_data(),
                                scratch.data()};
  level(isa).attend_chunk(&args);
  for (std::size_t i = bytes; i < bytes + 64; ++i) {
    need(scratch.data()[i] == std::byte{0xff}, "attend_chunk wrote past its scratch");
  }
  return out.to_tuple();
}

py::tuple merge(const std::string& isa, const Array<float>& max, const Array<float>& sum,
                const Array<float>& o, const Array<float>& other_max, const Array<float>& other_sum,
                const Array<float>& other_o) {
  const FloatEnv env;
  Partials state = partials_of(max, sum, o);
  const Partials other = partials_of(other_max, other_sum, other_o);
  need(state.o.shape(0) == other.o.shape(0) && state.o.shape(1) == other.o.shape(1),
       "merge: partials of different shapes");
  level(isa).attention_merge(state.o.shape(0), state.o.shape(1), state.rows.data(),
                             state.o.mutable_data(), other.rows.data(), other.o.data());
  return state.to_tuple();
}

void finish(const std::string& isa, const Array<float>& max, const Array<float>& sum,
            const Array<float>& o, const std::optional<Array<float>>& sink, std::int64_t head_dim,
            Array<float> out) {
  const FloatEnv env;
  const Partials state = partials_of(max, sum, o);
  need(out.ndim() == 2 && out.shape(0) == o.shape(0) && head_dim <= out.shape(1) &&
           head_dim <= o.shape(1) && (!sink || sink->size() == o.shape(0)),
       "finish: out [R][>= head_dim], sink [R] or None");
  level(isa).attention_finish(o.shape(0), o.shape(1), state.rows.data(), state.o.data(),
                              sink ? sink->data() : nullptr, out.mutable_data(), out.shape(1),
                              head_dim);
}

void write_token(const std::string& isa, const std::string& format, std::int64_t slot,
                 const Array<float>& k, const Array<float>& v, Array<std::uint8_t> open) {
  const FloatEnv env;
  need(k.size() == v.size() && slot >= 0 && slot < kPageTokens,
       "write_token: k, v [D], slot 0..63");
  need(open.size() == open_page_bytes(format_of(format), k.size()), "a slab of another size");
  level(isa).write_token(format_of(format), k.size(), slot, k.data(), v.data(),
                         open.mutable_data());
}

Array<std::uint8_t> seal_page(const std::string& isa, const std::string& format,
                              std::int64_t head_dim, const Array<std::uint8_t>& open) {
  const FloatEnv env;
  const KvFormat kv = format_of(format);
  need(kv != KvFormat::f32, "an f32 page has no sealed form");
  need(open.size() == open_page_bytes(kv, head_dim), "a slab of another size");
  Array<std::uint8_t> sealed(sealed_page_bytes(kv, head_dim));
  std::memset(sealed.mutable_data(), 0xff, static_cast<std::size_t>(sealed.size()));
  level(isa).seal_page(kv, head_dim, open.data(), sealed.mutable_data());
  return sealed;
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Seconds of one thread (heads times the median head) for `rows` queries (all at the last position,
// or spread over the last rows / group positions) over whole chunks of pages, each head with pages
// of its own. For benchmarks.
double attend_seconds(const std::string& isa, const std::string& format, std::int64_t head_dim,
                      std::int64_t group, std::int64_t rows, std::int64_t chunks,
                      std::int64_t heads, int repeats) {
  const FloatEnv env;
  const KvFormat kv = format_of(format);
  const KernelTable& kernels = level(isa);
  const std::int64_t page_bytes =
      kv == KvFormat::f32 ? open_page_bytes(kv, head_dim) : sealed_page_bytes(kv, head_dim);
  const std::int64_t pages = heads * chunks * kPagesPerChunk;
  AlignedBuffer slabs(static_cast<std::size_t>(pages * page_bytes), PageSize::huge);
  auto* bytes = reinterpret_cast<std::uint8_t*>(slabs.data());
  // Any bytes are valid codes; small f16 scales and f32 values come from filling with 0x2c.
  std::memset(bytes, 0x2c, slabs.size());
  std::vector<float> q(static_cast<std::size_t>(rows * head_dim), 0.01f);
  std::vector<float> o(q.size());
  std::vector<AttentionPartial> partial(static_cast<std::size_t>(rows));
  std::vector<std::int64_t> pos, lo(static_cast<std::size_t>(rows), 0), hi;
  const std::int64_t end = chunks * kMergeChunk;
  for (std::int64_t r = 0; r < rows; ++r) {
    pos.push_back(end + kPageTokens);  // every page of the measured range is sealed
    hi.push_back(end - 1 - (rows - 1 - r) / group);
  }
  AlignedBuffer scratch(static_cast<std::size_t>(attention_scratch_bytes(rows, head_dim)));
  const std::vector<KvFormat> formats(2 * kPagesPerChunk, kv);
  const auto run = [&](std::int64_t head, std::int64_t chunk) {
    const std::uint8_t* slab[2 * kPagesPerChunk];
    for (std::int64_t p = 0; p < 2 * kPagesPerChunk; ++p) {
      // As in the pool all heads' slabs of a page lie together. After a head's last page comes the
      // next head's first.
      const std::int64_t page = chunk * kPagesPerChunk + p;
      const std::int64_t owner = std::min(head + page / (chunks * kPagesPerChunk), heads - 1);
      slab[p] = bytes + (page % (chunks * kPagesPerChunk) * heads + owner) * page_bytes;
    }
    const bool more = kv != KvFormat::f32;
    AttendChunkArgs args{};
    args.head_dim = args.ldq = head_dim;
    args.rows = rows;
    args.q = q.data();
    args.pos = pos.data(), args.lo = lo.data(), args.hi = hi.data();
    args.chunk = chunk;
    args.formats = formats.data();
    args.open = slab;
    args.sealed = kv == KvFormat::f32 ? nullptr : slab;
    args.next = more ? slab + kPagesPerChunk : nullptr;
    args.partial = partial.data(), args.o = o.data();
    args.scratch = scratch.data();
    kernels.attend_chunk(&args);
  };
  run(0, 0);
  std::vector<double> seconds;  // of one head; the median is little moved by other processes
  for (int i = 0; i < repeats; ++i) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const auto start = std::chrono::steady_clock::now();
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) run(head, chunk);
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      seconds.push_back(elapsed.count());
    }
  }
  return median(seconds) * static_cast<double>(heads);
}

// Seconds a page takes to seal.
double seal_seconds(const std::string& isa, const std::string& format, std::int64_t head_dim,
                    int repeats) {
  const FloatEnv env;
  const KvFormat kv = format_of(format);
  const KernelTable& kernels = level(isa);
  AlignedBuffer open(static_cast<std::size_t>(open_page_bytes(kv, head_dim)));
  AlignedBuffer sealed(static_cast<std::size_t>(sealed_page_bytes(kv, head_dim)));
  std::memset(open.data(), 0x2c, open.size());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) {
    kernels.seal_page(kv, head_dim, reinterpret_cast<const std::uint8_t*>(open.data()),
                      reinterpret_cast<std::uint8_t*>(sealed.data()));
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / repeats;
}

// Attention of queries [rows][D] over keys and values [n][ld >= D] of a whole text -> [rows][D];
// whatever kernels use begins as NaN patterns, and what lies behind it is looked at.
Array<float> whole_attention(const std::string& isa, const Array<float>& k, const Array<float>& v,
                             const Array<float>& q, float factor) {
  const FloatEnv env;
  need(k.ndim() == 2 && v.ndim() == 2 && q.ndim() == 2 && k.shape(0) > 0 &&
           k.shape(0) == v.shape(0) && k.shape(1) == v.shape(1) && k.shape(1) >= q.shape(1),
       "whole_attention: k, v [n][>= D], q [rows][D]");
  const KernelTable& kernels = level(isa);
  const std::int64_t n = k.shape(0), dim = q.shape(1), pages = (n + kWholePage - 1) / kWholePage;
  const std::int64_t values = (dim + 15) / 16 * 16;
  const std::int64_t sizes[] = {pages * kWholePage * ((dim + 63) / 64 * 64),
                                pages * kWholePage * values,
                                4 * pages,
                                4 * values,
                                4 * values,
                                whole_scratch_bytes(n, dim)};
  std::vector<AlignedBuffer> rooms;
  for (const std::int64_t size : sizes) {
    rooms.emplace_back(static_cast<std::size_t>(size + 64));
    std::memset(rooms.back().data(), 0xff, rooms.back().size());
  }
  const WholeHead head{n,
                       dim,
                       rooms[0].as<std::uint8_t>(),
                       rooms[1].as<std::uint8_t>(),
                       rooms[2].as<float>(),
                       rooms[3].as<float>(),
                       rooms[4].as<float>()};
  Array<float> out({q.shape(0), q.shape(1)});
  kernels.whole_pack(k.data(), v.data(), k.shape(1), &head);
  kernels.whole_attend(&head, q.data(), dim, q.shape(0), factor, out.mutable_data(), dim,
                       rooms[5].data());
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    for (std::int64_t at = sizes[i]; at < sizes[i] + 64; ++at) {
      need(rooms[i].data()[at] == std::byte{0xff}, "whole_attention wrote past its room");
    }
  }
  return out;
}

}  // namespace

void register_kernels_attention(py::module_& m) {
  py::module_ testing = m.def_submodule("testing");
  testing.def("attend_chunk", &attend_chunk, py::arg("isa"), py::arg("format"), py::arg("q"),
              py::arg("pos"), py::arg("lo"), py::arg("hi"), py::arg("chunk"), py::arg("open"),
              py::arg("sealed"), py::arg("softcap"), py::arg("head_dim"));
  testing.def("attention_merge", &merge);
  testing.def("attention_finish", &finish);
  testing.def("write_token", &write_token);
  testing.def("seal_page", &seal_page);
  testing.def("open_page_bytes", [](const std::string& format, std::int64_t head_dim) {
    return open_page_bytes(format_of(format), head_dim);
  });
  testing.def("sealed_page_bytes", [](const std::string& format, std::int64_t head_dim) {
    return sealed_page_bytes(format_of(format), head_dim);
  });
  testing.def("attend_seconds", &attend_seconds, py::arg("isa"), py::arg("format"),
              py::arg("head_dim"), py::arg("group"), py::arg("rows"), py::arg("chunks"),
              py::arg("heads"), py::arg("repeats"), py::call_guard<py::gil_scoped_release>());
  testing.def("seal_seconds", &seal_seconds);
  testing.def("whole_attention", &whole_attention, py::arg("isa"), py::arg("k"), py::arg("v"),
              py::arg("q"), py::arg("factor"));
}

}  // namespace musespark

// Packing, unpacking and checksums of weight matrices for musespark.weights.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/checked.h"
#include "base/errors.h"
#include "base/float_env.h"
#include "base/hash.h"
#include "base/locked_pages.h"
#include "base/thread_pool.h"
#include "formats/gguf_strings.h"
#include "formats/pack.h"
#include "formats/repack.h"
#include "formats/weights_check.h"
#include "formats/weights_codec.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

std::string shape_text(const py::buffer_info& info) {
  std::string text = "(";
  for (const py::ssize_t n : info.shape) text += std::to_string(n) + ",";
  return text + ") of " + info.format;
}

// Bytes of the element type that `dtype` may come in, other than plain bytes.
bool is_element_of(const py::buffer_info& info, StoredType type) {
  if (type == StoredType::f32) return info.item_type_is_equivalent_to<float>();
  if (type == StoredType::f16 && info.format == "e") return true;
  const bool half = type == StoredType::f16 || type == StoredType::bf16;
  return half && info.item_type_is_equivalent_to<std::uint16_t>();
}

// Rows of blocks, from a 2-D array of their elements or of uint8 (a row's bytes).
StoredMatrix stored_matrix(const py::buffer_info& info, const std::string& dtype,
                           const std::string& what) {
  const StoredTypeInfo& stored = stored_type_from_name(dtype);
  const bool bytes = info.item_type_is_equivalent_to<std::uint8_t>();
  if (!bytes && !is_element_of(info, stored.type)) {
    throw InvalidRequest(what + ": array is " + shape_text(info) + " with dtype='" + dtype +
                         "'; expected uint8, or float32 with dtype='f32', or uint16 with "
                         "dtype='bf16' or 'f16'");
  }
  if (info.ndim != 2) {
    throw InvalidRequest(what + ": array has shape " + shape_text(info) + ", not 2-D");
  }
  if (info.shape[1] > 1 && info.strides[1] != info.itemsize) {
    throw InvalidRequest(what + ": the columns of a row must lie side by side");
  }
  const std::int64_t align = stored.values == 1 ? stored.bytes : 1;
  if (info.strides[0] % align != 0 || reinterpret_cast<std::uintptr_t>(info.ptr) % align != 0) {
    throw InvalidRequest(what + ": rows are not aligned to the element size");
  }
  const std::int64_t row_bytes = info.shape[1] * info.itemsize;
  if (row_bytes % stored.bytes != 0) {
    throw InvalidRequest(what + ": a row has " + std::to_string(row_bytes) + " bytes, a block of " +
                         dtype + " has " + std::to_string(stored.bytes));
  }
  return {static_cast<const std::uint8_t*>(info.ptr), stored.type,     info.shape[0],
          row_bytes / stored.bytes * stored.values,   info.strides[0], false};
}

// A contiguous buffer of bytes; `writable` as the caller needs.
py::buffer_info byte_buffer(const py::buffer& buffer, bool writable, const char* what) {
  py::buffer_info info = buffer.request(writable);
  py::ssize_t step = info.itemsize;
  for (py::ssize_t i = info.ndim - 1; i >= 0; --i) {
    if (info.shape[i] > 1 && info.strides[i] != step) {
      throw InvalidRequest(std::string(what) + ": buffer is not contiguous");
    }
    step *= info.shape[i];
  }
  return info;
}

// Packs `from`, any kind of matrix that pack_row_blocks takes, into `to` on `threads` threads.
template <class Matrix, class... Guide>
void pack_threaded(WeightFormat format, const Matrix& from, const py::buffer_info& to, int threads,
                   const Guide&... guide) {
  const WeightLayout layout = weight_layout(format, from.rows, from.cols);
  if (to.size * to.itemsize != layout.bytes) {
    throw InvalidRequest("pack: out has " + std::to_string(to.size * to.itemsize) +
                         " bytes, needs " + std::to_string(layout.bytes));
  }
  const py::gil_scoped_release release;
  ThreadPool pool(threads);
  const std::int64_t chunk = std::clamp<std::int64_t>(layout.row_blocks / threads / 8, 1, 16);
  pool.run_chunks(layout.row_blocks, chunk, [&](std::int64_t begin, std::int64_t end, int) {
    pack_row_blocks(format, from, begin, end, static_cast<std::uint8_t*>(to.ptr), guide...);
  });
}

using Floats = py::array_t<float, py::array::c_style>;

void check_guide(const Floats& values, const char* name, bool positive) {
  const float* data = values.data();
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(data[i]) && (!positive || data[i] > 0)) continue;
    throw InvalidRequest(
        std::string("pack: ") + name + " holds " + std::to_string(data[i]) +
        (positive ? "; finite numbers above zero are allowed" : "; finite numbers are allowed"));
  }
}

// Both arrays stay the caller's.
PackGuide pack_guide(WeightFormat format, const StoredMatrix& matrix,
                     const std::optional<Floats>& importance, const std::optional<Floats>& factor) {
  PackGuide guide;
  if (!importance && !factor) return guide;
  if (!is_quantized(format) || holds_exactly(format, matrix.type)) {
    throw InvalidRequest(std::string("pack: importance and factor are for rounding; ") +
                         weight_format_name(format) + " holds these numbers");
  }
  if (importance) {
    if (importance->ndim() != 1 || importance->shape(0) != matrix.cols) {
      throw InvalidRequest("pack: importance has " + std::to_string(importance->size()) +
                           " numbers, the matrix " + std::to_string(matrix.cols) + " columns");
    }
    check_guide(*importance, "importance", true);
    guide.importance = importance->data();
  }
  if (factor) {
    if (factor->ndim() != 2 || factor->shape(0) != matrix.cols || factor->shape(1) != matrix.cols) {
      throw InvalidRequest("pack: factor has " + std::to_string(factor->size()) +
                           " numbers, the matrix " + std::to_string(matrix.cols) + " columns");
    }
    check_guide(*factor, "factor", false);
    guide.factor = factor->data();
  }
  return guide;
}

void pack(const std::string& format_name, const py::buffer& array, const py::buffer& out,
          const std::string& dtype, int threads, bool quick,
          const std::optional<Floats>& importance, const std::optional<Floats>& factor) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info from = array.request();
  const py::buffer_info to = byte_buffer(out, true, "pack: out");
  StoredMatrix matrix = stored_matrix(from, dtype, "pack");
  matrix.quick = quick;
  pack_threaded(format, matrix, to, threads, pack_guide(format, matrix, importance, factor));
}

void pack_blocks(const std::string& format_name, const py::buffer& blocks, std::int64_t rows,
                 std::int64_t cols, const py::buffer& out, int threads) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info from = byte_buffer(blocks, false, "pack_blocks: blocks");
  const py::buffer_info to = byte_buffer(out, true, "pack_blocks: out");
  weight_layout(format, rows, cols);  // rows and cols make sense
  const std::int64_t row_bytes = checked_mul<InvalidRequest>(
      (cols + kBlockG32 - 1) / kBlockG32, source_block_bytes(format), "pack_blocks: a row");
  const auto needed = checked_mul<InvalidRequest>(rows, row_bytes, "pack_blocks: blocks");
  if (from.size * from.itemsize != needed) {
    throw InvalidRequest("pack_blocks: blocks has " + std::to_string(from.size * from.itemsize) +
                         " bytes, " + std::to_string(rows) + " x " + std::to_string(cols) +
                         " for " + format_name + " takes " + std::to_string(needed));
  }
  const auto* data = static_cast<const std::uint8_t*>(from.ptr);
  pack_threaded(format, BlockMatrix{data, rows, cols, row_bytes}, to, threads);
}

ScaleType scale_type(const std::string& name, py::ssize_t itemsize) {
  struct Known {
    const char* name;
    ScaleType type;
    py::ssize_t bytes;
  };
  constexpr Known kKnown[] = {{"f16", ScaleType::f16, 2},
                              {"bf16", ScaleType::bf16, 2},
                              {"f32", ScaleType::f32, 4},
                              {"e8m0", ScaleType::e8m0, 1}};
  for (const Known& known : kKnown) {
    if (name == known.name && itemsize == known.bytes) return known.type;
  }
  throw InvalidRequest("pack_codes: scales of " + std::to_string(itemsize) +
                       " bytes with scale_dtype='" + name +
                       "'; expected 2 with 'f16' or 'bf16', 4 with 'f32', 1 with 'e8m0'");
}

void pack_codes(const std::string& format_name, const py::buffer& codes, const py::buffer& scales,
                const py::buffer& out, const std::string& scale_dtype, int threads) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info from = byte_buffer(codes, false, "pack_codes: codes");
  const py::buffer_info scale = byte_buffer(scales, false, "pack_codes: scales");
  const py::buffer_info to = byte_buffer(out, true, "pack_codes: out");
  if (from.ndim != 2 || from.itemsize != 1) {
    throw InvalidRequest("pack_codes: codes are " + shape_text(from) + ", not 2-D of bytes");
  }
  const std::int64_t rows = from.shape[0], cols = from.shape[1];
  const std::int64_t groups = (cols + kBlockG32 - 1) / kBlockG32;
  if (scale.ndim != 2 || scale.shape[0] != rows || scale.shape[1] != groups) {
    throw InvalidRequest("pack_codes: scales have shape " + shape_text(scale) + ", expected (" +
                         std::to_string(rows) + "," + std::to_string(groups) + ",)");
  }
  const CodeMatrix matrix{static_cast<const std::int8_t*>(from.ptr), scale.ptr,
                          scale_type(scale_dtype, scale.itemsize), rows, cols};
  pack_threaded(format, matrix, to, threads);
}

py::array_t<float> unpack(const std::string& format_name, const py::buffer& buffer,
                          std::int64_t rows, std::int64_t cols) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info info = byte_buffer(buffer, false, "unpack: buffer");
  const WeightLayout layout = weight_layout(format, rows, cols);
  if (info.size * info.itemsize != layout.bytes) {
    throw InvalidRequest("unpack: buffer has " + std::to_string(info.size * info.itemsize) +
                         " bytes, " + format_name + " of " + std::to_string(rows) + " x " +
                         std::to_string(cols) + " takes " + std::to_string(layout.bytes));
  }
  py::array_t<float> out({rows, cols});
  float* values = out.mutable_data();
  const PackedMatrix w{static_cast<const std::uint8_t*>(info.ptr), layout.row_block_bytes, rows,
                       cols, format};
  const py::gil_scoped_release release;
  for (std::int64_t row = 0; row < rows; ++row) decode_row(w, row, values + row * cols);
  return out;
}

py::array_t<float> decode(const std::string& dtype, const py::buffer& array) {
  const py::buffer_info from = array.request();
  const StoredMatrix matrix = stored_matrix(from, dtype, "decode");
  py::array_t<float> out({matrix.rows, matrix.cols});
  float* values = out.mutable_data();
  const std::int64_t blocks = matrix.cols / stored_type_info(matrix.type).values;
  const py::gil_scoped_release release;
  const FloatEnv environment;
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    const std::uint8_t* at = matrix.data + row * matrix.row_bytes;
    decode_stored(matrix.type, at, blocks, values + row * matrix.cols);
  }
  return out;
}

py::array_t<std::int64_t> string_ends(const py::buffer& buffer, std::int64_t begin,
                                      std::int64_t count) {
  const py::buffer_info info = byte_buffer(buffer, false, "string_ends: buffer");
  const std::int64_t size = info.size * info.itemsize;
  check_gguf_strings(begin, count, size);
  py::array_t<std::int64_t> out(count);
  std::int64_t* ends = out.mutable_data();
  const py::gil_scoped_release release;
  find_gguf_strings(static_cast<const std::uint8_t*>(info.ptr), size, begin, count, ends);
  return out;
}

void check_packed_buffer(const std::string& format_name, const py::buffer& buffer,
                         std::int64_t rows, std::int64_t cols, const std::string& what) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info info = byte_buffer(buffer, false, "check_packed: buffer");
  const auto size = static_cast<std::size_t>(info.size * info.itemsize);
  const py::gil_scoped_release release;
  check_packed(packed_matrix(format, rows, cols, info.ptr, size, what), what);
}

void lock_buffers(const py::list& buffers) {
  std::vector<py::buffer_info> held;
  std::vector<std::span<const std::byte>> ranges;
  for (const py::handle buffer : buffers) {
    held.push_back(byte_buffer(buffer.cast<py::buffer>(), false, "lock_memory: buffer"));
    ranges.emplace_back(static_cast<const std::byte*>(held.back().ptr),
                        static_cast<std::size_t>(held.back().size * held.back().itemsize));
  }
  const py::gil_scoped_release release;
  lock_pages(ranges);
}

}  // namespace

void register_weights(py::module_& m) {
  m.def(
      "packed_nbytes",
      [](const std::string& format, std::int64_t rows, std::int64_t cols) {
        return weight_layout(weight_format_from_name(format), rows, cols).bytes;
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"), "Bytes of a packed rows x cols matrix.");
  m.def("pack", &pack, py::arg("format"), py::arg("array"), py::kw_only(), py::arg("out"),
        py::arg("dtype") = "f32", py::arg("threads") = 1, py::arg("quick") = false,
        py::arg("importance") = py::none(), py::arg("factor") = py::none(),
        "Packs a 2-D array of the stored type `dtype` (float32, float16, uint16 bits, or\n"
        "uint8 rows of blocks of any stored type; rows may be strided) into `out`, a writable\n"
        "buffer of packed_nbytes(format, rows, cols) bytes. The bytes do not depend on threads or\n"
        "machine. Blocks that the format holds exactly are repacked (see pack_blocks). Raises "
        "InvalidRequest for a number that is not finite. `quick` tries fewer scales. `importance`\n"
        "float32 [cols] and `factor` float32 [cols, cols] guide the rounding (formats/pack.h).");
  m.def("pack_blocks", &pack_blocks, py::arg("format"), py::arg("blocks"), py::kw_only(),
        py::arg("rows"), py::arg("cols"), py::arg("out"), py::arg("threads") = 1,
        "Packs rows of GGUF blocks, exactly: Q8_0 into q8g32h, Q4_0 into q4g32h, IQ4_NL into\n"
        "iq4g32h, MXFP4 into mxfp4. `cols` is a multiple of 32. Raises InvalidRequest for a scale\n"
        "that is not finite, naming row and block; UnsupportedModel for a row of mxfp4 whose\n"
        "scales reach over more than f16 does.");
  m.def("pack_codes", &pack_codes, py::arg("format"), py::arg("codes"), py::arg("scales"),
        py::kw_only(), py::arg("out"), py::arg("scale_dtype") = "f16", py::arg("threads") = 1,
        "The same from one code a byte [rows, cols] (int8 for q8g32h, else 0..15) and scales\n"
        "[rows, ceil(cols / 32)]: float16, bits of bfloat16 ('bf16'), float32 ('f32'), or bytes\n"
        "of mxfp4 ('e8m0'). UnsupportedModel also for a scale with more bits than f16 has.");
  m.def("decode", &decode, py::arg("dtype"), py::arg("array"),
        "Float32 [rows, cols] of a 2-D array as `pack` takes it.");
  m.def("string_ends", &string_ends, py::arg("buffer"), py::arg("begin"), py::arg("count"),
        "Offsets int64 [count] where GGUF strings that begin at byte `begin` end. Raises "
        "CorruptFile\n"
        "where they pass the buffer's end.");
  m.def("unpack", &unpack, py::arg("format"), py::arg("buffer"), py::arg("rows"), py::arg("cols"),
        "The matrix as float32 [rows, cols].");
  m.def("check_packed", &check_packed_buffer, py::arg("format"), py::arg("buffer"), py::arg("rows"),
        py::arg("cols"), py::kw_only(), py::arg("what"),
        "Raises CorruptFile, beginning with `what`, unless the scales of a quantized matrix are\n"
        "finite, no sub-scale is -128, and its padding is zero.");
  m.def("lock_memory", &lock_buffers, py::arg("buffers"),
        "Reads in and locks the pages of all byte buffers until they are unmapped. Raises\n"
        "MemoryBudgetExceeded, naming bytes and limit.");
  m.def(
      "checksum",
      [](const py::buffer& buffer) {
        const py::buffer_info info = byte_buffer(buffer, false, "checksum: buffer");
        const py::gil_scoped_release release;
        return xxh64(info.ptr, static_cast<std::size_t>(info.size * info.itemsize));
      },
      py::arg("buffer"), "XXH64 (seed 0) of the bytes.");
  m.attr("weight_formats") = py::tuple(py::cast(weight_format_names()));
  m.attr("arithmetic_version") = kArithmeticVersion;
}

}  // namespace musespark

// Packing, unpacking and checksums of weight matrices for musespark.weights.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "base/errors.h"
#include "base/hash.h"
#include "base/thread_pool.h"
#include "formats/pack.h"
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

FloatType float_type(const py::buffer_info& info, const std::string& dtype) {
  if (info.item_type_is_equivalent_to<float>() && dtype == "f32") return FloatType::f32;
  if (info.item_type_is_equivalent_to<std::uint16_t>() && dtype == "bf16") return FloatType::bf16;
  if (info.item_type_is_equivalent_to<std::uint16_t>() && dtype == "f16") return FloatType::f16;
  throw InvalidRequest(
      "pack: array is " + shape_text(info) + " with dtype='" + dtype +
      "'; expected float32 with dtype='f32', or uint16 with dtype='bf16' or 'f16'");
}

FloatMatrix float_matrix(const py::buffer_info& info, const std::string& dtype) {
  const FloatType type = float_type(info, dtype);
  if (info.ndim != 2)
    throw InvalidRequest("pack: array has shape " + shape_text(info) + ", not 2-D");
  if (info.shape[1] > 1 && info.strides[1] != info.itemsize) {
    throw InvalidRequest("pack: the columns of a row must lie side by side");
  }
  if (info.strides[0] % info.itemsize != 0) {
    throw InvalidRequest("pack: row stride is not a multiple of the element size");
  }
  return {info.ptr, type, info.shape[0], info.shape[1], info.strides[0] / info.itemsize};
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

void pack(const std::string& format_name, const py::buffer& array, const py::buffer& out,
          const std::string& dtype, int threads) {
  const WeightFormat format = weight_format_from_name(format_name);
  const py::buffer_info from = array.request();
  const py::buffer_info to = byte_buffer(out, true, "pack: out");
  const FloatMatrix matrix = float_matrix(from, dtype);
  const WeightLayout layout = weight_layout(format, matrix.rows, matrix.cols);
  if (to.size * to.itemsize != layout.bytes) {
    throw InvalidRequest("pack: out has " + std::to_string(to.size * to.itemsize) +
                         " bytes, needs " + std::to_string(layout.bytes));
  }
  const py::gil_scoped_release release;
  ThreadPool pool(threads);
  const std::int64_t chunk = std::clamp<std::int64_t>(layout.row_blocks / threads / 8, 1, 16);
  pool.run_chunks(layout.row_blocks, chunk, [&](std::int64_t begin, std::int64_t end, int) {
    pack_row_blocks(format, matrix, begin, end, static_cast<std::uint8_t*>(to.ptr));
  });
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

}  // namespace

void register_weights(py::module_& m) {
  m.def(
      "packed_nbytes",
      [](const std::string& format, std::int64_t rows, std::int64_t cols) {
        return weight_layout(weight_format_from_name(format), rows, cols).bytes;
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"), "Bytes of a packed rows x cols matrix.");
  m.def("pack", &pack, py::arg("format"), py::arg("array"), py::kw_only(), py::arg("out"),
        py::arg("dtype") = "f32", py::arg("threads") = 1,
        "Packs a 2-D array (float32, or uint16 bits with dtype='bf16' or 'f16'; rows may be "
        "strided)\n"
        "into `out`, a writable buffer of packed_nbytes(format, *array.shape) bytes. The bytes do "
        "not\n"
        "depend on threads or machine. Raises InvalidRequest for a number that is not finite.");
  m.def("unpack", &unpack, py::arg("format"), py::arg("buffer"), py::arg("rows"), py::arg("cols"),
        "The matrix as float32 [rows, cols].");
  m.def(
      "checksum",
      [](const py::buffer& buffer) {
        const py::buffer_info info = byte_buffer(buffer, false, "checksum: buffer");
        const py::gil_scoped_release release;
        return xxh64(info.ptr, static_cast<std::size_t>(info.size * info.itemsize));
      },
      py::arg("buffer"), "XXH64 (seed 0) of the bytes.");
  m.attr("weight_formats") = py::make_tuple("f32", "bf16", "q8", "q6", "q4");
  m.attr("arithmetic_version") = kArithmeticVersion;
}

}  // namespace musespark

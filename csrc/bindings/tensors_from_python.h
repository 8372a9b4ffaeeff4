// Tensors of a model from Python: name -> (format, rows, cols, buffer), the buffers held open.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/text_model.h"

namespace musespark {

// A contiguous buffer of a Python object, held open so that the object cannot move or close it.
class HeldBuffer {
 public:
  // Throws InvalidRequest naming `path`.
  HeldBuffer(pybind11::handle object, const std::string& path);
  ~HeldBuffer() { PyBuffer_Release(&view_); }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(view_.buf); }
  std::int64_t bytes() const { return view_.len; }

 private:
  Py_buffer view_;
};
using HeldBuffers = std::vector<std::unique_ptr<HeldBuffer>>;

// Throws InvalidRequest naming the tensor.
std::map<std::string, TensorView> tensors_from_python(const pybind11::dict& tensors,
                                                      HeldBuffers& held);

}  // namespace musespark

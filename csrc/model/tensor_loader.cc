#include "model/tensor_loader.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {

std::int64_t LoadedTensors::scratch_bytes(std::int64_t rows) const {
  std::int64_t bytes = 0;
  for (const auto& [format, cols] : matrix_kinds) {
    bytes = std::max(bytes, gated_scratch_bytes(format, cols, rows));
  }
  return bytes;
}

Matrix TensorLoader::matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
  const TensorView& t = find(name, rows, cols);
  if (t.bytes < 0) throw CorruptFile("tensor '" + name + "': a negative size");
  store_->matrix_kinds.insert({t.format, cols});
  return {packed_matrix(t.format, rows, cols, t.data, static_cast<std::size_t>(t.bytes),
                        "tensor '" + name + "'"),
          nullptr};
}

const float* TensorLoader::vector(const std::string& name, std::int64_t length, float add) {
  const TensorView& t = find(name, 1, length);
  const std::int64_t bytes = length * static_cast<std::int64_t>(sizeof(float));
  if (t.format != WeightFormat::f32) {
    throw CorruptFile("tensor '" + name + "': vectors are f32, not " +
                      weight_format_name(t.format));
  }
  if (t.bytes != bytes) {
    throw CorruptFile("tensor '" + name + "': " + std::to_string(t.bytes) + " bytes; " +
                      std::to_string(length) + " floats take " + std::to_string(bytes));
  }
  AlignedBuffer& own = store_->vectors[name];
  own = AlignedBuffer(static_cast<std::size_t>(bytes));
  std::memcpy(own.data(), t.data, own.size());
  if (add != 0.0f) {
    for (std::int64_t i = 0; i < length; ++i) own.as<float>()[i] += add;
  }
  return own.as<float>();
}

Matrix TensorLoader::biased(const std::string& name, std::int64_t rows, std::int64_t cols,
                            bool bias) {
  Matrix out = matrix(name, rows, cols);
  if (bias) out.bias = vector(name + "_bias", rows);
  return out;
}

float* TensorLoader::made(const std::string& name, std::int64_t length) {
  AlignedBuffer& own = store_->vectors[name];
  own = AlignedBuffer(static_cast<std::size_t>(length) * sizeof(float));
  return own.as<float>();
}

Norm TensorLoader::norm(const std::string& weight, const NormSpec& spec, std::int64_t length) {
  Norm norm;
  norm.eps = spec.eps;
  switch (spec.kind) {
    case NormKind::none:
      return norm;
    case NormKind::rms_scaleless:
      norm.kind = Norm::Kind::rms;
      return norm;
    case NormKind::rms:
      norm.kind = Norm::Kind::rms;
      norm.weight = vector(weight, length);
      return norm;
    case NormKind::rms_centered:
      norm.kind = Norm::Kind::rms;
      norm.weight = vector(weight, length, 1.0f);
      return norm;
    case NormKind::rms_input_scaled:
      norm.kind = Norm::Kind::rms_input_scaled;
      norm.weight = vector(weight, length, 1.0f);
      return norm;
    case NormKind::layer:
      norm.kind = Norm::Kind::layer;
      norm.weight = vector(weight, length);
      if (spec.bias) norm.bias = vector(weight + "_bias", length);
      return norm;
  }
  return norm;
}

void TensorLoader::check_all_used() const {
  for (const auto& [name, view] : tensors_) {
    if (!used_.contains(name)) {
      throw CorruptFile("tensor '" + name + "' (" + std::to_string(view.rows) + " x " +
                        std::to_string(view.cols) + ") is not one of this model's");
    }
  }
}

const TensorView& TensorLoader::find(const std::string& name, std::int64_t rows,
                                     std::int64_t cols) {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) {
    throw CorruptFile("tensor '" + name + "' (" + std::to_string(rows) + " x " +
                      std::to_string(cols) + ") is missing");
  }
  if (at->second.rows != rows || at->second.cols != cols) {
    throw CorruptFile("tensor '" + name + "' is " + std::to_string(at->second.rows) + " x " +
                      std::to_string(at->second.cols) + "; the model needs " +
                      std::to_string(rows) + " x " + std::to_string(cols));
  }
  used_.insert(name);
  return at->second;
}

}  // namespace musespark

// A model's tensors by name: checked against the shapes that its spec asks for.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/aligned.h"
#include "model/spec.h"
#include "model/text_model.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace musespark {

// What tensors became: matrices are views of the file, vectors lie here.
struct LoadedTensors {
  std::map<std::string, AlignedBuffer> vectors;  // what norms, biases and the like point into
  std::set<std::pair<WeightFormat, std::int64_t>>
      matrix_kinds;  // format and columns of each matrix

  // Bytes of scratch per thread for products with up to `rows` rows.
  std::int64_t scratch_bytes(std::int64_t rows) const;
};

// Takes tensors out of the map. Every function throws CorruptFile naming a tensor that is missing,
// misshapen or of the wrong format.
class TensorLoader {
 public:
  TensorLoader(const std::map<std::string, TensorView>& tensors, LoadedTensors* store)
      : tensors_(tensors), store_(store) {}

  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols);
  // With the vector "<name>_bias" where `bias`.
  Matrix biased(const std::string& name, std::int64_t rows, std::int64_t cols, bool bias);
  // A copy of a vector, with `add` added to every element.
  const float* vector(const std::string& name, std::int64_t length, float add = 0.0f);
  // `weight` names the norm's weight; its bias is <weight>_bias.
  Norm norm(const std::string& weight, const NormSpec& spec, std::int64_t length);
  // Room for a vector that is made here, under a name that no tensor has.
  float* made(const std::string& name, std::int64_t length);

  // Throws CorruptFile for a tensor that nobody took.
  void check_all_used() const;

 private:
  const TensorView& find(const std::string& name, std::int64_t rows, std::int64_t cols);

  const std::map<std::string, TensorView>& tensors_;
  LoadedTensors* store_;
  std::set<std::string> used_;
};

}  // namespace musespark

// A vision tower's tensors, checked and ready.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/prepared.h"
#include "model/vision_spec.h"

namespace musespark {

struct PreparedHead {
  Merge merge;
  Norm norm, merged_norm, out_norm;
  std::vector<Matrix> products;
  std::int64_t widest = 0;  // of what the products give but for the last
  Gating gating;

  Needs needs(std::size_t product) const {
    Needs out;
    out.add(products[product]);
    return out;
  }
};

struct PreparedVision : LoadedTensors {
  Matrix patch;
  Needs patch_needs;
  const float* class_token = nullptr;
  const float* positions = nullptr;  // [class_token + side * side][hidden]
  std::optional<RopeTable> rope;     // of one axis
  Norm embed_norm;
  std::vector<PreparedLayer> layers;
  PreparedHead head;
  std::vector<PreparedHead> taps;
};

// Patches on a side of a window, 0 where no layer has windows.
std::int64_t window_of(const VisionSpec& spec);

// Throws UnsupportedModel naming the field that this version lacks or that makes no sense.
void check_spec(const VisionSpec& spec);

// Throws CorruptFile for tensors that are missing, unknown, misshapen or misplaced.
PreparedVision prepare_vision(const VisionSpec& spec,
                              const std::map<std::string, TensorView>& tensors);

}  // namespace musespark

// The vision tower: one forward path for every family, patches in, rows of the text side out.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "base/thread_pool.h"
#include "model/text_model.h"
#include "model/vision_spec.h"

namespace musespark {

// An image, a tile or a clip: `frames` grids of height x width patches.
struct Grid {
  std::int64_t frames, height, width;
};

class VisionTower {
 public:
  // Tensor names: csrc/model/README.md. Views must outlive the tower. Throws UnsupportedModel for a
  // spec that this version does not run, CorruptFile for tensors that do not fit it.
  VisionTower(VisionSpec spec, const std::map<std::string, TensorView>& tensors, ThreadPool& pool);
  ~VisionTower();
  VisionTower(const VisionTower&) = delete;
  VisionTower& operator=(const VisionTower&) = delete;

  const VisionSpec& spec() const;

  // Tokens that the grids become: frames * height * width / merge^2 of each. Throws InvalidRequest
  // for a grid that the tower cannot take.
  std::int64_t tokens(std::span<const Grid> grids) const;

  // patches [sum of frames * height * width][patch_dim], frame after frame, in spec().order.
  // out: first [tokens][head.widths.back()], then one such for each tap; tokens frame after frame
  // in raster order. With packed weights a frame's bits depend on its patches alone. Asks `stopped`
  // (empty: never) before each layer of each batch; true ends the call, which then returns false.
  // One call at a time.
  bool encode(std::span<const Grid> grids, const float* patches, std::span<float* const> out,
              const std::function<bool()>& stopped = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace musespark

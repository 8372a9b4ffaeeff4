// Which patch is where: the geometry of a batch of frames, worked out once before the layers run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/vision_spec.h"
#include "ops/full_attention.h"
#include "ops/patches.h"

namespace musespark {

struct Frame {
  std::int64_t height, width;  // patches
  std::int64_t patches() const { return height * width; }
};

// Rows of a batch lie frame by frame; in a frame the class token, then window by window, patches
// of a window in the order in which they came.
struct VisionPlan {
  static constexpr std::int64_t kClass = -1;

  std::vector<std::int64_t> patch;      // of each row: its index among the patches given, or kClass
  std::vector<std::int32_t> y, x;       // of each row in its frame; class token: 0
  std::vector<PositionShare> share;     // of all rows, one after the other
  std::vector<std::int64_t> share_end;  // of each row
  std::vector<TextSpan> frames;         // rows that full attention is over
  std::vector<TextSpan> windows;        // rows that windowed attention is over
  // Rows of each token, merge * merge in raster order; tokens frame by frame in raster order.
  std::vector<std::int64_t> members;

  std::int64_t rows() const { return static_cast<std::int64_t>(patch.size()); }
};

// `window`: patches on a side, 0 if no layer has windows.
VisionPlan plan_frames(const VisionSpec& spec, std::int64_t window, std::span<const Frame> frames);

// Shares of the table that the frame's patches have at most: few, unless a table is far larger than
// the frame and patches read areas of it.
std::int64_t most_shares(const PositionSpec& positions, const Frame& frame);

// What each axis of a frame reads of the table, and how much: a patch's shares are the products of
// its row's and its column's. shares[i]: of index i of `size`.
std::vector<std::vector<PositionShare>> axis_shares(PositionKind kind, std::int64_t size,
                                                    std::int64_t side);

}  // namespace musespark

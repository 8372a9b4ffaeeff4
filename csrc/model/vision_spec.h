// VisionSpec: what a vision tower is, as data. Made in Python from a checkpoint's config
// (families/vision/<name>.py); its twin is families/vision/spec.py. The tower reads nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "model/spec.h"
#include "ops/patches.h"

namespace musespark {

// Order in which the patches of a frame come, rows of patches of h x w: raster, or the patches of
// each merge x merge block together (blocks in raster order, and raster order inside).
enum class PatchOrder : std::uint32_t { raster, blocks };

// How patch (y, x) of a frame of h x w reads the learned table [side * side, hidden]:
// table              row y * side + x; h and w are side
// buckets            (bucket(y, h), bucket(x, w)): in which side-th of the frame it begins
// bilinear_corners   between the four rows around it, the frame's corners on the table's corners
// bilinear_zeros     centres of patches on centres of entries, what lies outside the table is 0
// bilinear_area      the same, but normalized at the edges, and over as many entries as a patch
//                    covers where there are more of them (antialiased)
enum class PositionKind : std::uint32_t {
  none,
  table,
  buckets,
  bilinear_corners,
  bilinear_zeros,
  bilinear_area
};

struct PositionSpec {
  PositionKind kind = PositionKind::none;
  std::int64_t side = 0;
  // Patch y * w + x of h x w reads what the patch of that number of w x h would (raster order
  // only).
  bool turned = false;
};

// Rotary positions: the first quarter of a head's pairs turns by the row, the second by the
// column, or the other way round; both counted from `first`. Half-and-half pairs (i, i + D / 2),
// frequencies theta^(-4 i / D).
struct AxialRopeSpec {
  bool on = false;
  double theta = 10000.0;
  bool columns_first = false;
  std::int64_t first = 0;
};

// How the merge x merge patches of a block, in raster order, become a token, and tokens rows of the
// text side.
struct HeadSpec {
  NormSpec norm;  // of a patch's row
  Merge merge = Merge::concat;
  NormSpec merged_norm;              // of a token's row, "merged_norm"
  std::vector<std::int64_t> widths;  // of the products, the last is the text side's; at least one
  Activation activation = Activation::gelu;  // between two of them, and nowhere else
  bool bias = false;
  NormSpec out_norm;
};

// A head on what layer `layer` gives: deep-stack features.
struct TapSpec {
  std::int64_t layer = 0;
  HeadSpec head;
};

// Frames of one call are independent: full attention is over the patches of a frame. A layer with
// attention.window > 0 sees the patches of its window alone, that many on a side, counted from the
// frame's top left corner; all such layers have the same. attention.rope is 0 (the tower's axial
// rope) or -1.
struct VisionSpec {
  std::int64_t patch_dim = 0;  // numbers of a patch, in the order of the embedding's columns
  std::int64_t hidden = 0;
  std::int64_t merge = 1;  // patches of a token on a side; frames are multiples of it
  PatchOrder order = PatchOrder::raster;
  bool patch_bias = false;
  bool class_token = false;  // row 0 of a frame; it is row 0 of the table of positions too
  PositionSpec positions;
  AxialRopeSpec rope;
  NormSpec embed_norm;
  std::vector<LayerSpec> layers;
  HeadSpec head;
  std::vector<TapSpec> taps;  // by ascending layer
};

}  // namespace musespark

// Pillow's resize on arrays: separable, the support widened when shrinking, bytes between the two
// passes. Same bits as version 13 of its Resample.c (ImagingResample) and, for `nearest`, its
// Geometry.c (ImagingScaleAffine).
#pragma once

#include <cstdint>

#include "kernels/dispatch.h"

namespace musespark {

// The numbers are Pillow's.
enum class Resample : std::uint32_t {
  nearest = 0,
  lanczos = 1,
  bilinear = 2,
  bicubic = 3,
  box = 4,
  hamming = 5
};

// Bytes [height][width][channels] at any strides.
struct PixelView {
  const std::uint8_t* data;
  std::int64_t height, width, channels;
  std::int64_t row_stride, pixel_stride, channel_stride;
};

// Which pass comes first. The columns', in Pillow since version 13, where the height shrinks by
// more than twice as many pixels as the width; else, and before, the rows'; torchvision's always.
enum class PassOrder : std::uint32_t { pillow, rows_first };

// A part of an image, in pixels; the edges may lie between pixels.
struct Box {
  float left, top, right, bottom;
};

inline constexpr std::int64_t kLongestSide = std::int64_t{1} << 20;

// Throws InvalidRequest for sides outside [1, kLongestSide], other channels than 1, 3 and 4, or a
// box that is empty or not inside the image: to be asked before anything is allocated.
void check_resize(const PixelView& image, const Box& box, std::int64_t height, std::int64_t width);

// The part `box` of the image as [height][width][channels] packed bytes at `out`, which the input
// must not overlap. channels: 1, 3, or 4 = RGBA, whose colours are weighted with their alpha, as
// Pillow does. Runs in the calling thread; result and time do not depend on any other. Throws as
// check_resize.
void resize_image(const KernelTable& kernels, const PixelView& image, Resample filter,
                  const Box& box, std::int64_t height, std::int64_t width, PassOrder order,
                  std::uint8_t* out);

}  // namespace musespark

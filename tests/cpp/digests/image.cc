// The resampler: every filter up and down, one, three and four channels, rows and columns first.
#include "ops/image.h"
#include "cases.h"

namespace musespark::digests {
namespace {

struct Sides {
  std::int64_t height, width, new_height, new_width;
};
constexpr Sides kSides[] = {{1, 1, 5, 7},    {40, 61, 17, 23},  {61, 40, 7, 90},
                            {9, 130, 33, 4}, {130, 9, 40, 9},   {5, 47, 5, 96},
                            {33, 3, 2, 2},   {64, 200, 64, 31}, {20, 21, 90, 80}};
constexpr Resample kFilters[] = {Resample::nearest, Resample::lanczos, Resample::bilinear,
                                 Resample::bicubic, Resample::box,     Resample::hamming};

void one(const Sides& sides, std::int64_t channels, Resample filter) {
  const std::string name = "image/" + std::to_string(sides.height) + "x" +
                           std::to_string(sides.width) + "/" + std::to_string(channels) + "/" +
                           std::to_string(static_cast<int>(filter));
  Random random(channels);
  Array<std::uint8_t> in(sides.height * sides.width * channels);
  for (std::int64_t i = 0; i < in.size(); ++i) {
    in[i] =
        static_cast<std::uint8_t>(random.below(2) == 0 ? random.below(256) : 255 * random.below(2));
  }
  const PixelView view = {
      in.data(), sides.height, sides.width, channels, sides.width * channels, channels, 1};
  const Box box = {0, 0, static_cast<float>(sides.width), static_cast<float>(sides.height)};
  compare_levels(name, [&](const KernelTable& kernels) {
    Array<std::uint8_t> out(sides.new_height * sides.new_width * channels);
    resize_image(kernels, view, filter, box, sides.new_height, sides.new_width, PassOrder::pillow,
                 out.data());
    Bytes bytes;
    append(bytes, out.data(), out.size());
    return bytes;
  });
}

}  // namespace

void image_digests() {
  for (const Sides& sides : kSides) {
    for (const std::int64_t channels : {1, 3, 4}) {
      for (const Resample filter : kFilters) one(sides, channels, filter);
    }
  }
}

}  // namespace musespark::digests

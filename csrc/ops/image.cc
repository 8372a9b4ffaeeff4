#include "ops/image.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/float_env.h"
#include "ops/resample_axis.h"

namespace musespark {
namespace {

void check_sides(const char* name, std::int64_t height, std::int64_t width) {
  if (std::min(height, width) >= 1 && std::max(height, width) <= kLongestSide) return;
  throw InvalidRequest("[resize] " + std::string(name) + " must be two sides between 1 and " +
                       std::to_string(kLongestSide) + ", got (" + std::to_string(height) + ", " +
                       std::to_string(width) + ")");
}

void check_box(const Box& box, std::int64_t height, std::int64_t width) {
  const bool inside = box.left >= 0 && box.top >= 0 && box.right <= static_cast<float>(width) &&
                      box.bottom <= static_cast<float>(height);
  if (inside && box.left < box.right && box.top < box.bottom) return;
  const auto text = [](float edge) { return std::to_string(edge); };
  throw InvalidRequest("[resize] box must be (left, top, right, bottom), not empty, inside " +
                       std::to_string(width) + " x " + std::to_string(height) + " pixels, got (" +
                       text(box.left) + ", " + text(box.top) + ", " + text(box.right) + ", " +
                       text(box.bottom) + ")");
}

// --- Alpha, as Pillow's RGBa -------------------------------------------------------------------

std::uint8_t times_alpha(std::uint8_t colour, std::uint8_t alpha) {
  const int product = colour * alpha + 128;
  return static_cast<std::uint8_t>(((product >> 8) + product) >> 8);
}

void weigh_with_alpha(std::uint8_t* row, std::int64_t pixels) {
  for (std::uint8_t* p = row; p != row + pixels * 4; p += 4) {
    for (int c = 0; c < 3; ++c) p[c] = times_alpha(p[c], p[3]);
  }
}

void divide_by_alpha(std::uint8_t* row, std::int64_t pixels) {
  for (std::uint8_t* p = row; p != row + pixels * 4; p += 4) {
    if (p[3] == 0 || p[3] == 255) continue;
    for (int c = 0; c < 3; ++c) p[c] = static_cast<std::uint8_t>(std::min(255 * p[c] / p[3], 255));
  }
}

// --- Rows ----------------------------------------------------------------------------------------

// Rows of the image as packed bytes.
class SourceRows {
 public:
  SourceRows(const PixelView& image, bool weigh)
      : image_(image),
        weigh_(weigh),
        packed_(image.channel_stride == 1 && image.pixel_stride == image.channels) {}

  std::int64_t bytes() const { return image_.width * image_.channels; }
  bool in_place() const { return packed_ && !weigh_; }

  const std::uint8_t* in_place(std::int64_t r) const { return image_.data + r * image_.row_stride; }
  void copy(std::int64_t r, std::uint8_t* to) const {
    const std::uint8_t* from = in_place(r);
    if (packed_) {
      std::memcpy(to, from, static_cast<std::size_t>(bytes()));
    } else {
      for (std::int64_t x = 0; x < image_.width; ++x, from += image_.pixel_stride) {
        for (std::int64_t c = 0; c < image_.channels; ++c) *to++ = from[c * image_.channel_stride];
      }
      to -= bytes();
    }
    if (weigh_) weigh_with_alpha(to, image_.width);
  }

 private:
  PixelView image_;
  bool weigh_, packed_;
};

// The pass along rows; without weights it packs them.
class RowPass {
 public:
  RowPass(const KernelTable& kernels, const SourceRows& source, const PixelView& image,
          const ResampleAxis* across)
      : kernels_(kernels), source_(source), image_(image), across_(across) {
    if (across && !source.in_place()) {
      scratch_.resize(static_cast<std::size_t>(kResampleRows * source.bytes()));
    }
  }

  // Whether rows are the image's own, which need no copy.
  bool in_place() const { return !across_ && source_.in_place(); }
  const std::uint8_t* in_place(std::int64_t r) const { return source_.in_place(r); }

  // Rows [first, first + rows) to out[0], out[1], ...; rows <= kResampleRows.
  void run(std::int64_t first, std::int64_t rows, std::uint8_t* const* out) {
    if (!across_) {
      for (std::int64_t r = 0; r < rows; ++r) source_.copy(first + r, out[r]);
      return;
    }
    const std::uint8_t* in[kResampleRows];
    for (std::int64_t r = 0; r < rows; ++r) {
      in[r] = source_.in_place() ? source_.in_place(first + r) : scratch_row(r);
      if (!source_.in_place()) source_.copy(first + r, scratch_row(r));
    }
    kernels_.image.resample_rows(across_, image_.channels, image_.width, rows, in, out);
  }

 private:
  std::uint8_t* scratch_row(std::int64_t r) { return scratch_.data() + r * source_.bytes(); }

  const KernelTable& kernels_;
  const SourceRows& source_;
  PixelView image_;
  const ResampleAxis* across_;
  std::vector<std::uint8_t> scratch_;
};

// The pass across rows. Rows of the pass before it are made when they are first needed and kept in
// a ring of as many as an output row reads.
class ColumnPass {
 public:
  ColumnPass(const KernelTable& kernels, RowPass& rows, const ResampleAxis& axis,
             std::int64_t row_bytes)
      : kernels_(kernels), rows_(rows), axis_(axis), row_bytes_(row_bytes), next_(axis.first[0]) {
    const std::int64_t most = *std::max_element(axis.count, axis.count + axis.size);
    last_ = axis.first[axis.size - 1] + axis.count[axis.size - 1];
    slots_ = most + kResampleRows - 1;
    taps_.resize(static_cast<std::size_t>(most));
    if (!rows.in_place()) ring_.resize(static_cast<std::size_t>(slots_ * row_bytes));
  }

  // Output row `index`; indices ascend from call to call.
  void run(std::int64_t index, std::uint8_t* out) {
    const std::int64_t first = axis_.first[index], count = axis_.count[index];
    if (!rows_.in_place()) make_rows(first + count);
    for (std::int64_t t = 0; t < count; ++t) {
      taps_[static_cast<std::size_t>(t)] =
          rows_.in_place() ? rows_.in_place(first + t) : slot(first + t);
    }
    kernels_.image.resample_column(&axis_, index, row_bytes_, taps_.data(), out);
  }

 private:
  std::uint8_t* slot(std::int64_t r) { return ring_.data() + r % slots_ * row_bytes_; }
  void make_rows(std::int64_t end) {
    while (next_ < end) {
      std::uint8_t* to[kResampleRows];
      for (int r = 0; r < kResampleRows; ++r) to[r] = slot(next_ + r);
      const std::int64_t made = std::min<std::int64_t>(kResampleRows, last_ - next_);
      rows_.run(next_, made, to);
      next_ += made;
    }
  }

  const KernelTable& kernels_;
  RowPass& rows_;
  const ResampleAxis& axis_;
  std::int64_t row_bytes_, next_, last_, slots_;
  std::vector<std::uint8_t> ring_;
  std::vector<const std::uint8_t*> taps_;
};

// Calls work(first, count) for all of [0, rows), kResampleRows at a time.
template <class Work>
void by_rows(std::int64_t rows, const Work& work) {
  for (std::int64_t r = 0; r < rows; r += kResampleRows) {
    work(r, std::min<std::int64_t>(kResampleRows, rows - r));
  }
}

struct Passes {
  const KernelTable& kernels;
  const PixelView& image;
  const SourceRows& source;
  const ResampleAxis* across;  // null: rows keep their length
  const ResampleAxis* down;    // null: columns do
  std::int64_t height, width;
  std::uint8_t* out;

  std::uint8_t* row(std::int64_t r) const { return out + r * width * image.channels; }

  void rows_only() const {
    RowPass pass(kernels, source, image, across);
    by_rows(height, [&](std::int64_t first, std::int64_t count) {
      std::uint8_t* to[kResampleRows];
      for (std::int64_t r = 0; r < count; ++r) to[r] = row(first + r);
      pass.run(first, count, to);
    });
  }

  void rows_first() const {
    RowPass pass(kernels, source, image, across);
    ColumnPass columns(kernels, pass, *down, width * image.channels);
    for (std::int64_t r = 0; r < height; ++r) columns.run(r, row(r));
  }

  void columns_first() const {
    RowPass pass(kernels, source, image, nullptr);
    ColumnPass columns(kernels, pass, *down, source.bytes());
    std::vector<std::uint8_t> made(static_cast<std::size_t>(kResampleRows * source.bytes()));
    by_rows(height, [&](std::int64_t first, std::int64_t count) {
      const std::uint8_t* from[kResampleRows];
      std::uint8_t* to[kResampleRows];
      for (std::int64_t r = 0; r < count; ++r) {
        columns.run(first + r, made.data() + r * source.bytes());
        from[r] = made.data() + r * source.bytes();
        to[r] = row(first + r);
      }
      kernels.image.resample_rows(across, image.channels, image.width, count, from, to);
    });
  }
};

// --- Nearest -------------------------------------------------------------------------------------

// The input of each output; positions are summed up, not multiplied, as Pillow does.
std::vector<std::int64_t> nearest_inputs(float begin, float end, std::int64_t length,
                                         std::int64_t size) {
  const double scale = static_cast<double>(end - begin) / static_cast<double>(size);
  std::vector<std::int64_t> inputs(static_cast<std::size_t>(size));
  double position = begin + scale * 0.5;
  for (std::int64_t& input : inputs) {
    input = std::min(static_cast<std::int64_t>(position), length - 1);
    position += scale;
  }
  return inputs;
}

void resize_nearest(const PixelView& image, const Box& box, std::int64_t height, std::int64_t width,
                    std::uint8_t* out) {
  const auto columns = nearest_inputs(box.left, box.right, image.width, width);
  const auto rows = nearest_inputs(box.top, box.bottom, image.height, height);
  for (const std::int64_t r : rows) {
    const std::uint8_t* row = image.data + r * image.row_stride;
    for (const std::int64_t x : columns) {
      const std::uint8_t* pixel = row + x * image.pixel_stride;
      for (std::int64_t c = 0; c < image.channels; ++c) *out++ = pixel[c * image.channel_stride];
    }
  }
}

}  // namespace

void check_resize(const PixelView& image, const Box& box, std::int64_t height, std::int64_t width) {
  check_sides("image", image.height, image.width);
  check_sides("size", height, width);
  if (image.channels != 1 && image.channels != 3 && image.channels != 4) {
    throw InvalidRequest("[resize] channels must be 1, 3 or 4, got " +
                         std::to_string(image.channels));
  }
  check_box(box, image.height, image.width);
}

void resize_image(const KernelTable& kernels, const PixelView& image, Resample filter,
                  const Box& box, std::int64_t height, std::int64_t width, PassOrder order,
                  std::uint8_t* out) {
  check_resize(image, box, height, width);
  const FloatEnv environment;
  if (filter == Resample::nearest) return resize_nearest(image, box, height, width, out);

  const auto differs = [](std::int64_t length, float begin, float end, std::int64_t size) {
    return size != length || begin != 0.0f || end != static_cast<float>(size);
  };
  std::optional<AxisWeights> across, down;
  if (differs(image.width, box.left, box.right, width)) {
    across.emplace(filter, image.width, box.left, box.right, width);
  }
  if (differs(image.height, box.top, box.bottom, height)) {
    down.emplace(filter, image.height, box.top, box.bottom, height);
  }
  const bool weigh = image.channels == 4 && (across || down);
  const SourceRows source(image, weigh);
  const Passes passes = {
      kernels, image, source, across ? &across->axis() : nullptr, down ? &down->axis() : nullptr,
      height,  width, out};
  const bool columns_first = order == PassOrder::pillow && image.height > height &&
                             image.height - height > 2 * (image.width - width);
  if (!down) {
    passes.rows_only();
  } else if (across && columns_first) {
    passes.columns_first();
  } else {
    passes.rows_first();
  }
  for (std::int64_t r = 0; weigh && r < height; ++r) divide_by_alpha(passes.row(r), width);
}

}  // namespace musespark

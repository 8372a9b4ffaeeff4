// Images: arrays of bytes in and out.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "base/errors.h"
#include "kernels/dispatch.h"
#include "ops/image.h"
#include "register.h"

namespace py = pybind11;

namespace musespark {
namespace {

constexpr std::pair<const char*, Resample> kFilters[] = {
    {"nearest", Resample::nearest},   {"lanczos", Resample::lanczos},
    {"bilinear", Resample::bilinear}, {"bicubic", Resample::bicubic},
    {"box", Resample::box},           {"hamming", Resample::hamming}};

Resample filter_of(const std::string& name) {
  std::string known;
  for (const auto& [each, filter] : kFilters) {
    if (name == each) return filter;
    known += std::string(known.empty() ? "" : ", ") + each;
  }
  throw InvalidRequest("[resize] resample must be one of " + known + ", got '" + name + "'");
}

const KernelTable& table_of(const std::string& isa) {
  if (isa.empty()) return kernels();
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa == isa_name(static_cast<Isa>(i))) return kernel_table(static_cast<Isa>(i));
  }
  throw InvalidRequest("no instruction set is called " + isa);
}

py::array_t<std::uint8_t> resize(const py::array_t<std::uint8_t, 0>& image, std::int64_t height,
                                 std::int64_t width, const std::string& resample,
                                 const std::optional<std::array<float, 4>>& box, bool rows_first,
                                 const std::string& isa) {
  if (image.ndim() != 3) {
    throw InvalidRequest("[resize] the array must have 3 dimensions, got " +
                         std::to_string(image.ndim()));
  }
  const PixelView view = {image.data(),     image.shape(0),   image.shape(1),  image.shape(2),
                          image.strides(0), image.strides(1), image.strides(2)};
  const Resample filter = filter_of(resample);
  Box part = {0, 0, static_cast<float>(view.width), static_cast<float>(view.height)};
  if (box) part = {(*box)[0], (*box)[1], (*box)[2], (*box)[3]};
  check_resize(view, part, height, width);
  const KernelTable& table = table_of(isa);
  py::array_t<std::uint8_t> out({height, width, view.channels});
  std::uint8_t* to = out.mutable_data();
  {
    const py::gil_scoped_release release;
    const PassOrder order = rows_first ? PassOrder::rows_first : PassOrder::pillow;
    resize_image(table, view, filter, part, height, width, order, to);
  }
  return out;
}

}  // namespace

void register_image(py::module_& m) {
  m.def("resize", &resize, py::arg("image"), py::kw_only(), py::arg("height"), py::arg("width"),
        py::arg("resample"), py::arg("box") = py::none(), py::arg("rows_first") = false,
        py::arg("isa") = "",
        "uint8 [h, w, channels] resized as Pillow does, or torchvision with rows_first.\n"
        "box: left, top, right, bottom; isa: the level whose kernels run, for tests.");
}

}  // namespace musespark

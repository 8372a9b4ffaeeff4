// _core.VisionTower.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <span>
#include <vector>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "dict_reader.h"
#include "model/vision_tower.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

class PyVisionTower {
 public:
  PyVisionTower(const py::dict& spec, const py::dict& tensors, int threads)
      : pool_(threads),
        tower_(vision_spec_from_python(spec), tensors_from_python(tensors, held_), pool_) {}

  // grids: (frames, height, width) each. None where `stopped` said so.
  py::object encode(const py::array& patches, const py::sequence& grids,
                    const py::object& stopped) {
    const std::vector<Grid> list = read_grids(grids);
    const std::int64_t tokens = tower_.tokens(list);  // checks the grids
    const float* from = check_patches(patches, list);
    py::list arrays;
    std::vector<float*> out;
    for (std::size_t i = 0; i <= tower_.spec().taps.size(); ++i) {
      const py::array_t<float> one({static_cast<py::ssize_t>(tokens),
                                    static_cast<py::ssize_t>(tower_.spec().head.widths.back())});
      out.push_back(const_cast<float*>(one.data()));
      arrays.append(one);
    }
    std::function<bool()> ask;
    if (!stopped.is_none()) {
      ask = [&stopped] {
        const py::gil_scoped_acquire locked;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        return stopped().cast<bool>();
      };
    }
    bool done = false;
    {
      const py::gil_scoped_release unlocked;
      done = tower_.encode(list, from, out, ask);
    }
    return done ? py::object(std::move(arrays)) : py::none();
  }

 private:
  static std::vector<Grid> read_grids(const py::sequence& grids) {
    std::vector<Grid> out;
    for (const py::handle one : grids) {
      const std::string path = "grids[" + std::to_string(out.size()) + "]";
      if (!py::isinstance<py::sequence>(one) || py::len(one) != 3) {
        DictReader::fail(path, shown(one), "(frames, height, width)");
      }
      const auto sizes = py::reinterpret_borrow<py::sequence>(one);
      out.push_back(
          {to_integer(sizes[0], path), to_integer(sizes[1], path), to_integer(sizes[2], path)});
    }
    return out;
  }

  const float* check_patches(const py::array& patches, const std::vector<Grid>& grids) const {
    std::int64_t rows = 0;
    for (const Grid& grid : grids) rows += grid.frames * grid.height * grid.width;
    const std::int64_t cols = tower_.spec().patch_dim;
    if (!py::isinstance<py::array_t<float, py::array::c_style>>(patches) || patches.ndim() != 2 ||
        patches.shape(0) != rows || patches.shape(1) != cols) {
      const auto shape = patches.attr("shape").cast<py::tuple>();
      DictReader::fail(
          "patches", shown(patches.dtype()) + " " + shown(shape),
          "contiguous float32 [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
    }
    return static_cast<const float*>(patches.data());
  }

  HeldBuffers held_;
  ThreadPool pool_;
  VisionTower tower_;
};

}  // namespace

void register_vision(py::module_& m) {
  py::class_<PyVisionTower>(m, "VisionTower")
      .def(py::init<const py::dict&, const py::dict&, int>(), py::arg("spec"), py::arg("tensors"),
           py::kw_only(), py::arg("threads"))
      .def("encode", &PyVisionTower::encode, py::arg("patches"), py::arg("grids"), py::kw_only(),
           py::arg("stopped") = py::none(),
           "float32 [patches, patch_dim] and (frames, height, width) of each image -> float32 "
           "[tokens, width] of the head, then of each tap; None where stopped() was true. One call "
           "at a time.");
}

}  // namespace musespark

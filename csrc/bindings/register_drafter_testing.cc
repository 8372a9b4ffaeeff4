// _core.testing: a block drafter over one text, without the engine; how long drafts are to be.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "cache/sequence.h"
#include "decode/speculation.h"
#include "dict_reader.h"
#include "model/drafter.h"
#include "register.h"
#include "spec_from_python.h"
#include "tensors_from_python.h"

namespace py = pybind11;

namespace musespark {
namespace {

class TestDrafter {
 public:
  TestDrafter(const py::object& spec, const py::dict& tensors, const py::object& target,
              const py::dict& target_tensors, std::int64_t first, int threads)
      : pool_(threads), target_(spec_from_python(target)), first_(first) {
    const auto own = tensors_from_python(tensors, held_);
    const auto of = tensors_from_python(target_tensors, held_);
    drafter_ = std::make_unique<Drafter>(spec_from_python(spec), own, target_, of, pool_);
    pages_ = std::make_unique<PagePool>(drafter_->kv_layout(), std::int64_t{1} << 30);
    kv_ = std::make_unique<Sequence>(*pages_);
  }

  void extend(const py::array_t<float, py::array::c_style>& states) {
    if (states.ndim() != 2 || states.shape(1) != drafter_->state_width()) {
      DictReader::fail("states", shown(states.attr("shape")),
                       "[rows, " + std::to_string(drafter_->state_width()) + "]");
    }
    const py::gil_scoped_release unlocked;
    drafter_->extend({*kv_, first_}, states.data(), states.shape(0));
  }

  py::object draft(std::int32_t last, std::int64_t count, int interrupt_at) {
    const std::int64_t rows = std::clamp<std::int64_t>(count, 0, drafter_->spec().block);
    py::array_t<float> out({rows, target_.vocab});
    int checks = 0;
    const std::function<bool()> interrupted = [&] { return checks++ == interrupt_at; };
    float* logits = out.mutable_data();
    bool done = false;
    {
      const py::gil_scoped_release unlocked;
      done = drafter_->draft({*kv_, first_}, last, count, interrupted, logits);
    }
    return done ? py::object(out) : py::none();
  }

  std::int64_t length() const { return kv_->length(); }
  std::int64_t bytes() const { return pages_->usage().in_use; }

 private:
  HeldBuffers held_;
  ThreadPool pool_;
  ModelSpec target_;
  std::int64_t first_;
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<PagePool> pages_;
  std::unique_ptr<Sequence> kv_;
};

void register_lengths(py::module_& testing) {
  py::class_<RowCost>(testing, "RowCost")
      .def(py::init<>())
      .def("observe", &RowCost::observe, py::arg("rows"), py::arg("seconds"))
      .def("wants_single", &RowCost::wants_single);
  py::class_<DraftLength>(testing, "DraftLength")
      .def(py::init<>())
      .def(
          "next",
          [](DraftLength& length, const RowCost& cost, std::int64_t most, double draft_pass,
             double each) { return length.next(cost, most, {draft_pass, each}).count; },
          py::arg("cost"), py::arg("most"), py::kw_only(), py::arg("draft_pass"), py::arg("each"))
      .def("skipped", &DraftLength::skipped)
      .def("tried", &DraftLength::tried, py::arg("drafted"), py::arg("right"));
}

}  // namespace

void register_drafter_testing(py::module_& m) {
  auto testing = m.def_submodule("testing");
  register_lengths(testing);
  py::class_<TestDrafter>(testing, "Drafter")
      .def(py::init<const py::object&, const py::dict&, const py::object&, const py::dict&,
                    std::int64_t, int>(),
           py::arg("spec"), py::arg("tensors"), py::arg("target"), py::arg("target_tensors"),
           py::kw_only(), py::arg("first") = 0, py::arg("threads") = 1,
           "`first`: the position of the first state.")
      .def("extend", &TestDrafter::extend, py::arg("states"),
           "float32 [rows, target layers * hidden] of the next positions.")
      .def("draft", &TestDrafter::draft, py::arg("last"), py::arg("count"), py::kw_only(),
           py::arg("interrupt_at") = -1,
           "Logits float32 [count, vocab]; None where it was interrupted before that layer.")
      .def_property_readonly("length", &TestDrafter::length)
      .def_property_readonly("bytes", &TestDrafter::bytes);
}

}  // namespace musespark

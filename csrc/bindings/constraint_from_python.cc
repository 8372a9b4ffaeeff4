#include "constraint_from_python.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "dict_reader.h"

namespace py = pybind11;

namespace musespark {
namespace {

// The only place where the thread of run_until takes the interpreter's lock: the engine holds none
// of its own then (nor when it gives a constraint up), so no thread can wait for it with that lock.
class PythonConstraint : public TokenConstraint {
 public:
  explicit PythonConstraint(py::object callable) : callable_(std::move(callable)) {}
  PythonConstraint(const PythonConstraint&) = delete;
  PythonConstraint& operator=(const PythonConstraint&) = delete;
  ~PythonConstraint() override {
    const py::gil_scoped_acquire locked;
    callable_ = py::object();
  }

  Allowed next(std::span<const std::int32_t> tokens, std::span<std::uint64_t> ids) override {
    const py::gil_scoped_acquire locked;
    try {
      py::list given;
      for (const std::int32_t token : tokens) given.append(token);
      return taken(callable_(std::move(given)), ids);
    } catch (const py::error_already_set& error) {
      throw Error(told(error));
    }
  }

 private:
  // A ValueError (InvalidRequest is one) says itself what is wrong; others get their name.
  static std::string told(const py::error_already_set& error) {
    const std::string text = py::str(error.value());
    if (error.matches(PyExc_ValueError)) return text;
    return "the constraint raised " + std::string(py::str(error.type().attr("__name__"))) + ": " +
           text;
  }

  static Allowed taken(const py::object& answer, std::span<std::uint64_t> ids) {
    if (answer.is_none()) return Allowed::all;
    if (!py::isinstance<py::bytes>(answer)) {
      DictReader::fail("constraint's answer", shown(answer), "bytes or None");
    }
    const auto bytes = py::reinterpret_borrow<py::bytes>(answer);
    const std::string_view bits(bytes);
    if (bits.empty()) return Allowed::end;
    std::memcpy(ids.data(), bits.data(), std::min(bits.size(), ids.size_bytes()));
    return Allowed::some;
  }

  py::object callable_;
};

}  // namespace

std::shared_ptr<TokenConstraint> constraint_from_python(const py::object& callable) {
  if (PyCallable_Check(callable.ptr()) == 0) {
    DictReader::fail("constraint", shown(callable), "something that can be called");
  }
  return std::make_shared<PythonConstraint>(callable);
}

}  // namespace musespark

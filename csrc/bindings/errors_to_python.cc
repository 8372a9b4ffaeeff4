#include "errors_to_python.h"

#include <pybind11/pybind11.h>

#include <cstring>

#include "base/errors.h"

namespace py = pybind11;

namespace musespark {
namespace {

// Sets the Python exception of this name from musespark.errors; fields become attributes.
void raise(const char* name, const std::exception& error, const py::dict& fields = {}) {
  const py::object type = py::module_::import("musespark.errors").attr(name);
  const py::object value = type(error.what(), **fields);
  PyErr_SetObject(type.ptr(), value.ptr());
}

}  // namespace

void error_to_python(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const ContextOverflow& error) {
    raise("ContextOverflow", error,
          py::dict(py::arg("needed") = error.needed(), py::arg("limit") = error.limit()));
  } catch (const InvalidRequest& error) {
    raise("InvalidRequest", error);
  } catch (const UnsupportedModel& error) {
    raise("UnsupportedModel", error);
  } catch (const CorruptFile& error) {
    raise("CorruptFile", error);
  } catch (const MemoryBudgetExceeded& error) {
    raise("MemoryBudgetExceeded", error);
  } catch (const Cancelled& error) {
    raise("Cancelled", error);
  } catch (const DeadlineExceeded& error) {
    raise("DeadlineExceeded", error);
  } catch (const IoError& error) {
    // OSError picks its subclass (FileNotFoundError ...) from the number.
    const py::tuple arguments =
        py::make_tuple(error.error_number(), std::strerror(error.error_number()), error.path());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  } catch (const Error& error) {
    raise("Error", error);
  }
}

}  // namespace musespark

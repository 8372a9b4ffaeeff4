// The core's exceptions as those of musespark.errors.
#pragma once

#include <exception>

namespace musespark {

// For py::register_local_exception_translator, in each extension module.
void error_to_python(std::exception_ptr pointer);

}  // namespace musespark

// Rows in place of embeddings (model/given_rows.h) from arrays, which are copied.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/given_rows.h"

namespace musespark {

// float32 [count, hidden], contiguous. Throws InvalidRequest.
SharedFloats floats_from_python(pybind11::handle array, std::int64_t count, std::int64_t hidden,
                                const std::string& path);
std::vector<SharedFloats> taps_from_python(const pybind11::sequence& taps, std::int64_t count,
                                           std::int64_t hidden, const std::string& path);

// A list of dicts: first, count, advance; rows float32 [count, hidden] and taps, a list of the
// same, or None; places int32 [count, 3] or None.
std::vector<GivenRows> given_from_python(const pybind11::sequence& given, std::int64_t hidden);

}  // namespace musespark

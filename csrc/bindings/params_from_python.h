// What a request asks for (decode/engine.h) from a dict. Throws InvalidRequest, naming the key.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decode/engine.h"
#include "dict_reader.h"

namespace musespark {

// A sequence of 32-bit ids.
std::vector<std::int32_t> ids_from_python(pybind11::handle value, const std::string& path);

// Absent keys keep their defaults.
SamplingParams read_sampling(DictReader& d);
RequestParams params_from_python(const pybind11::dict& params, std::int64_t hidden);

}  // namespace musespark

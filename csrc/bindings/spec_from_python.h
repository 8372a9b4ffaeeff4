// The one conversion from a families.spec.ModelSpec (as a nested dict) to the core's ModelSpec.
#pragma once

#include <pybind11/pybind11.h>

#include "model/spec.h"
#include "model/vision_spec.h"

namespace musespark {

// Throws InvalidRequest naming the path of a missing or unknown key, or a value of the wrong type.
// Whether the values make a model is TextModel's to say.
ModelSpec spec_from_python(pybind11::handle spec);
// The same for a families.vision.spec.VisionSpec.
VisionSpec vision_spec_from_python(pybind11::handle spec);

}  // namespace musespark

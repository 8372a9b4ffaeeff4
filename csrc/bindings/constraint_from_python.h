// A Python callable as a TokenConstraint (decode/constraint.h).
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "decode/constraint.h"

namespace musespark {

// Called with the new tokens, a list of int. Answers None: every id may follow; bytes: those whose
// bits are set, id i in bit i % 8 of byte i / 8, ids behind its end not; empty bytes: the sequence
// ends here. Throws InvalidRequest for what cannot be called.
std::shared_ptr<TokenConstraint> constraint_from_python(const pybind11::object& callable);

}  // namespace musespark

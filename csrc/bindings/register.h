// The parts of the _core module. Bindings only translate: check types, release the GIL, call down.
#pragma once

#include <pybind11/pybind11.h>

namespace musespark {

// Each is defined in register_<part>.cc; module.cc calls those that exist, base first. What only
// tests need goes into the submodule `testing`: m.def_submodule("testing") returns it.
void register_base(pybind11::module_& m);
void register_kernels(pybind11::module_& m);
void register_kernels_attention(pybind11::module_& m);
void register_kernels_rowwise(pybind11::module_& m);
void register_weights(pybind11::module_& m);
void register_model_testing(pybind11::module_& m);
void register_drafter_testing(pybind11::module_& m);
void register_ops_testing(pybind11::module_& m);
void register_calibrate(pybind11::module_& m);
void register_engine(pybind11::module_& m);
void register_sizes(pybind11::module_& m);
void register_encoder(pybind11::module_& m);
void register_image(pybind11::module_& m);
void register_vision(pybind11::module_& m);

// testing_base.cc: fills the submodule `testing`; register_base calls it.
void register_base_testing(pybind11::module_& testing);

}  // namespace musespark

#include "register.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of musespark. Internal: use the package's public names.";
  m.def_submodule("testing", "Parts of the core that only tests call.");
#define MUSESPARK_PART(name) musespark::register_##name(m);
#include "register_parts.inc"
#undef MUSESPARK_PART
}

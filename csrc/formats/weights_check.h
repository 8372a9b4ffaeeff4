// What packers promise of a quantized matrix beyond its size, checked on bytes that come from a
// file. Kernels do without: they give the same bits for any bytes, but hardly the numbers meant.
#pragma once

#include <string>

#include "formats/weights.h"

namespace musespark {

// Throws CorruptFile naming `what` and the place unless row and block scales are finite, no
// sub-scale is -128, and everything in padding (rows, columns, the gap before the codes) is zero.
// Float formats pass.
void check_packed(const PackedMatrix& w, const std::string& what);

}  // namespace musespark

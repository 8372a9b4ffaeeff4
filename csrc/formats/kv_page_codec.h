// Pages of keys and values as numbers, in the rotated frame (formats/kv_page.h).
#pragma once

#include <cstdint>

#include "formats/kv_page.h"

namespace musespark {

// keys [64][d], less the page's mean [d]; values [64][d]. Not for f32. A row whose scale is NaN is
// NaN.
void decode_sealed(KvFormat format, std::int64_t d, const std::uint8_t* sealed, float* keys,
                   float* mean, float* values);

// The same of an open page; keys with their mean.
void decode_open(KvFormat format, std::int64_t d, const std::uint8_t* open, float* keys,
                 float* values);

}  // namespace musespark

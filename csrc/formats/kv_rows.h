// Rows of a page as floats, in the page's frame (formats/kv_page.h says what the bytes mean).
#pragma once

#include <cstdint>

#include "formats/kv_page.h"

namespace musespark {

// Key and value of slot 0..63 of an open page, [d] floats each.
void load_open_row(KvFormat format, std::int64_t d, const std::uint8_t* open, std::int64_t slot,
                   float* k, float* v);

// The same of a sealed page, keys with their mean. A row whose scale is NaN is NaN.
void load_sealed_row(KvFormat format, std::int64_t d, const std::uint8_t* sealed, std::int64_t slot,
                     float* k, float* v);

}  // namespace musespark

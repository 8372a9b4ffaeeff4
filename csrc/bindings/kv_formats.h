// Formats of keys and values by name.
//
// A choice is written "kv8" (all layers), or with the layers apart by "," and their KV heads by "/"
// where these differ: "kv8v4,kv8/kv8v4,kv4".
#pragma once

#include <optional>
#include <string>

#include "formats/kv_page.h"
#include "model/text_model.h"

namespace musespark {

std::optional<KvFormat> find_kv_format(const std::string& name);

// "f32, kv8, ...", for messages.
std::string kv_format_names();

// Throws InvalidRequest for a name that is none, or a choice for another model.
KvChoice kv_choice(const std::string& text, const ModelSpec& spec);

}  // namespace musespark

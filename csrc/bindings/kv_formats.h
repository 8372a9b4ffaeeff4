// KV formats by name.
#pragma once

#include <optional>
#include <string>

#include "formats/kv_page.h"

namespace musespark {

inline constexpr const char* kKvFormatNames[kKvFormats] = {"f32", "kv8", "kv8v4", "kv4"};

inline std::optional<KvFormat> find_kv_format(const std::string& name) {
  for (std::uint32_t i = 0; i < kKvFormats; ++i) {
    if (name == kKvFormatNames[i]) return static_cast<KvFormat>(i);
  }
  return std::nullopt;
}

// "f32, kv8, ...", for messages.
inline std::string kv_format_names() {
  std::string names;
  for (const char* name : kKvFormatNames) names += names.empty() ? name : std::string(", ") + name;
  return names;
}

}  // namespace musespark

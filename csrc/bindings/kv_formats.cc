#include "kv_formats.h"

#include <string_view>
#include <utility>
#include <vector>

#include "dict_reader.h"

namespace musespark {
namespace {

constexpr const char* kNames[kKvFormats] = {"f32", "kv8", "kv8v4", "kv4"};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

KvFormat format_of(const std::string& name) {
  if (const auto format = find_kv_format(name)) return *format;
  DictReader::fail("kv", "'" + name.substr(0, 40) + "'", kv_format_names());
}

}  // namespace

std::optional<KvFormat> find_kv_format(const std::string& name) {
  for (std::uint32_t i = 0; i < kKvFormats; ++i) {
    if (name == kNames[i]) return static_cast<KvFormat>(i);
  }
  return std::nullopt;
}

std::string kv_format_names() {
  std::string names;
  for (const char* name : kNames) names += names.empty() ? name : std::string(", ") + name;
  return names;
}

KvChoice kv_choice(const std::string& text, const ModelSpec& spec) {
  if (text.find_first_of(",/") == std::string::npos) return same_for_all(spec, format_of(text));
  KvChoice choice;
  for (const std::string& layer : split(text, ',')) {
    choice.emplace_back();
    for (const std::string& head : split(layer, '/')) choice.back().push_back(format_of(head));
    const std::size_t index = choice.size() - 1;
    if (choice.back().size() == 1 && index < spec.layers.size()) {
      const std::int64_t heads = spec.layers[index].attention.kv_heads;
      choice.back().resize(static_cast<std::size_t>(heads), choice.back()[0]);
    }
  }
  return choice;
}

}  // namespace musespark

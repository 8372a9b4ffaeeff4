// Strict reading of a Python dict: every value has its type, every missing or unknown key is an
// InvalidRequest that names its path ("layers[3].attention.rope").
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"

namespace musespark {

class DictReader {
 public:
  // `path` stands before the keys in messages; empty at the root.
  DictReader(pybind11::handle value, std::string path);

  // Throws for keys that nothing has read.
  void finish() const;

  bool has(const char* key) const;  // present and not None; counts as read
  pybind11::object value(const char* key);
  std::string path(const std::string& key) const;

  std::int64_t integer(const char* key, std::int64_t low = std::numeric_limits<std::int64_t>::min(),
                       std::int64_t high = std::numeric_limits<std::int64_t>::max());
  std::uint64_t unsigned_integer(const char* key);
  double real(const char* key);
  bool boolean(const char* key);
  std::string text(const char* key);
  DictReader dict(const char* key);
  pybind11::sequence list(const char* key);  // a list or tuple

  // The enumerator whose name the value is.
  template <class Enum>
  Enum choice(const char* key, std::initializer_list<std::pair<const char*, Enum>> choices) {
    const std::string name = text(key);
    std::string allowed;
    for (const auto& [known, enumerator] : choices) {
      if (name == known) return enumerator;
      allowed += std::string(allowed.empty() ? "" : ", ") + known;
    }
    fail(path(key), "'" + name + "'", allowed);
  }

  [[noreturn]] static void fail(const std::string& path, const std::string& got,
                                const std::string& allowed);

 private:
  std::string path_;
  pybind11::dict dict_;
  mutable std::set<std::string> read_;
};

// What a Python value looks like in a message: its repr, cut short.
std::string shown(pybind11::handle value);
// Integers and floats of any kind Python and NumPy have, bool excluded; InvalidRequest otherwise.
std::int64_t to_integer(pybind11::handle value, const std::string& path);
double to_real(pybind11::handle value, const std::string& path);

}  // namespace musespark

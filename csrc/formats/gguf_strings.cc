#include "formats/gguf_strings.h"

#include <cstring>
#include <string>

#include "base/errors.h"

namespace musespark {

void check_gguf_strings(std::int64_t begin, std::int64_t count, std::int64_t size) {
  if (begin < 0 || begin > size || count < 0 || count > (size - begin) / 8) {
    throw CorruptFile(std::to_string(count) + " strings at byte " + std::to_string(begin) +
                      " do not fit in " + std::to_string(size) + " bytes");
  }
}

void find_gguf_strings(const std::uint8_t* data, std::int64_t size, std::int64_t begin,
                       std::int64_t count, std::int64_t* ends) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t left = size - begin;
    std::uint64_t length = 0;
    if (left >= 8) std::memcpy(&length, data + begin, 8);
    if (left < 8 || length > static_cast<std::uint64_t>(left - 8)) {
      throw CorruptFile("string " + std::to_string(i) + " of " + std::to_string(count) + " has " +
                        std::to_string(length) + " bytes at byte " + std::to_string(begin) +
                        " of " + std::to_string(size));
    }
    begin += 8 + static_cast<std::int64_t>(length);
    ends[i] = begin;
  }
}

}  // namespace musespark

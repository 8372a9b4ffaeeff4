// Arrays of strings in GGUF metadata: each is eight bytes of length, little endian, and its bytes.
#pragma once

#include <cstdint>

namespace musespark {

// Throws CorruptFile where `count` strings, empty ones even, cannot lie between byte `begin` and
// `size`: to be asked before anything is allocated for them.
void check_gguf_strings(std::int64_t begin, std::int64_t count, std::int64_t size);

// ends[i] = the byte after string i of those that begin at byte `begin` of `data`. Throws
// CorruptFile, naming the string, where one passes `size`.
void find_gguf_strings(const std::uint8_t* data, std::int64_t size, std::int64_t begin,
                       std::int64_t count, std::int64_t* ends);

}  // namespace musespark

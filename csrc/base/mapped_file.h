// A whole file mapped read-only. The pages belong to the system's file cache: they cost memory only
// while there is room, and several processes share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace musespark {

// Unmaps when destroyed. Moves, never copies.
//
// A file that another process truncates while it is mapped raises SIGBUS on the next read behind
// its new end; writers in this project therefore always write a new file and rename it.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws IoError if the path cannot be opened, is not a regular file or cannot be mapped.
  // An empty file is a valid mapping of no bytes.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // The part [offset, offset + length). Throws CorruptFile, naming `field`, if it leaves the file.
  std::span<const std::byte> slice(std::uint64_t offset, std::uint64_t length,
                                   const std::string& field) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

}  // namespace musespark

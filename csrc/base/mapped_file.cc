#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/errors.h"

namespace musespark {
namespace {

[[noreturn]] void throw_io(const std::string& path, const char* action, int error_number) {
  throw IoError(std::string(action) + " '" + path + "': " + std::strerror(error_number),
                error_number, path);
}

// Closes the descriptor when the mapping is made or refused; the mapping does not need it.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  if (path.find('\0') != std::string::npos) throw_io(path, "cannot open", EINVAL);
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.number() < 0) throw_io(path, "cannot open", errno);
  struct stat status;
  if (fstat(file.number(), &status) != 0) throw_io(path, "cannot read the size of", errno);
  if (S_ISDIR(status.st_mode)) throw_io(path, "cannot map", EISDIR);
  if (!S_ISREG(status.st_mode)) throw_io(path, "cannot map (not a regular file)", EINVAL);
  if (status.st_size == 0) return;
  const auto size = static_cast<std::size_t>(status.st_size);
  void* memory = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.number(), 0);
  if (memory == MAP_FAILED) throw_io(path, "cannot map", errno);
  data_ = static_cast<const std::byte*>(memory);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

std::span<const std::byte> MappedFile::slice(std::uint64_t offset, std::uint64_t length,
                                             const std::string& field) const {
  if (offset > size_ || length > size_ - offset) {
    throw CorruptFile("'" + path_ + "': " + field + " covers bytes " + std::to_string(offset) +
                      " + " + std::to_string(length) + ", but the file has " +
                      std::to_string(size_) + " bytes");
  }
  return {data_ + offset, static_cast<std::size_t>(length)};
}

}  // namespace musespark

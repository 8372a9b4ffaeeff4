#include "base/locked_pages.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/errors.h"

namespace musespark {
namespace {

[[noreturn]] void refuse(std::size_t needed, int error_number) {
  struct rlimit limit{};
  std::string text = "lock_memory: " + std::to_string(needed) + " bytes cannot be locked (" +
                     std::strerror(error_number) + ")";
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur < needed) {
    text += ": this process may lock " + std::to_string(limit.rlim_cur) +
            " bytes; raise the limit (ulimit -l, LimitMEMLOCK=)";
  }
  throw MemoryBudgetExceeded(text);
}

}  // namespace

void lock_pages(std::span<const std::span<const std::byte>> ranges) {
  std::size_t needed = 0;
  for (const auto range : ranges) needed += range.size();
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].empty() || mlock(ranges[i].data(), ranges[i].size()) == 0) continue;
    const int error_number = errno;
    for (std::size_t j = 0; j <= i; ++j) munlock(ranges[j].data(), ranges[j].size());
    refuse(needed, error_number);
  }
}

}  // namespace musespark

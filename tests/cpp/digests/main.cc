// core_digests [--plant] [part...]: prints a digest of what each part of the core computes, one
// "name digest" line for each case. Each kernel runs at every level this process may use (named in
// the first line of stderr) and must give scalar's bytes; exits with 1, naming the case, where one
// does not.
//
// The lines are the same on every architecture: tests/golden/core_digests.txt holds them as x86-64
// printed them, and tests/python/test_core_digests.py runs this program on AArch64 and x86-64.
// --plant changes the last bit of every other level's result: then it must fail.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/cpu.h"
#include "base/float_env.h"
#include "base/hash.h"
#include "base/random.h"
#include "cases.h"

namespace musespark::digests {
namespace {

bool plant = false;
long failures = 0;

struct Part {
  const char* name;
  void (*run)();
};
constexpr Part kParts[] = {{"base", base_digests},           {"matmul", matmul_digests},
                           {"attention", attention_digests}, {"whole", whole_digests},
                           {"rowwise", rowwise_digests},     {"forward", forward_digests},
                           {"image", image_digests}};

bool wanted(const char* part, int count, char** names) {
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(names[i], part) == 0) return true;
  }
  return count == 0;
}

}  // namespace

std::uint32_t Random::word() {
  const std::uint64_t at = position_++;
  return random_words(seed_, 0, at / 4)[at % 4];
}

float Random::normal() {
  std::int32_t sum = 0;
  const std::uint32_t a = word(), b = word();
  for (const std::uint32_t v : {a & 0xffff, a >> 16, b & 0xffff, b >> 16}) {
    sum += static_cast<std::int32_t>(v) - 0x8000;
  }
  return static_cast<float>(sum) * (1.0f / 37837.0f);  // 2^16 / sqrt(3)
}

void Random::fill(std::span<float> out, float scale) {
  for (float& x : out) x = normal() * scale;
}

float Random::any_finite() {
  const std::uint32_t bits = word();
  const std::uint32_t exponent = bits >> 23 & 0xff;
  const std::uint32_t finite = exponent == 0xff ? bits ^ 0x40000000u : bits;
  return __builtin_bit_cast(float, finite);
}

Guarded::Guarded(std::int64_t bytes) : size_(static_cast<std::size_t>(bytes)) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t held = (size_ + page - 1) / page * page;
  mapped_ = held + page;
  map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map_ == MAP_FAILED) std::abort();
  std::uint8_t* end = static_cast<std::uint8_t*>(map_) + held;
  if (mprotect(end, page, PROT_NONE) != 0) std::abort();
  data_ = end - size_;
}

Guarded::~Guarded() { munmap(map_, mapped_); }

void report(const std::string& name, const Bytes& bytes) {
  std::printf("%s %016llx\n", name.c_str(),
              static_cast<unsigned long long>(xxh64(bytes.data(), bytes.size())));
}

bool same_bytes(const std::string& name, Isa level, const Bytes& actual, const Bytes& expected) {
  Bytes bytes = actual;
  if (plant) bytes.back() ^= 1;
  if (bytes == expected) return true;
  ++failures;
  std::size_t first = 0;
  while (first < bytes.size() && first < expected.size() && bytes[first] == expected[first]) {
    ++first;
  }
  std::fprintf(stderr, "%s at %s: byte %zu of %zu (scalar: %zu) is the first that differs\n",
               name.c_str(), isa_name(level), first, bytes.size(), expected.size());
  return false;
}

}  // namespace musespark::digests

int main(int argc, char** argv) {
  using namespace musespark;
  using namespace musespark::digests;
  const FloatEnv env;
  if (argc > 1 && std::strcmp(argv[1], "--plant") == 0) {
    plant = true;
    --argc, ++argv;
  }
  std::fprintf(stderr, "levels:");
  for (const Isa level : isa_levels()) std::fprintf(stderr, " %s", isa_name(level));
  std::fprintf(stderr, "\n");
  for (const Part& part : kParts) {
    if (wanted(part.name, argc - 1, argv + 1)) part.run();
  }
  if (failures) std::fprintf(stderr, "%ld failures\n", failures);
  return failures != 0;
}

#include "base/cpu.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/errors.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace musespark {
namespace {

struct Feature {
  const char* name;
  bool present;
};

// Empty if all are present, else a sentence naming the missing ones.
std::string missing(const char* owner, std::initializer_list<Feature> features) {
  std::string names;
  for (const Feature& feature : features) {
    if (!feature.present) names += std::string(names.empty() ? "" : ", ") + feature.name;
  }
  return names.empty() ? "" : std::string(owner) + " lacks " + names;
}

#if defined(__x86_64__)

struct CpuidWords {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidWords cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  CpuidWords words;
  if (leaf <= __get_cpuid_max(leaf & 0x80000000, nullptr)) {
    __cpuid_count(leaf, subleaf, words.eax, words.ebx, words.ecx, words.edx);
  }
  return words;
}

bool bit(std::uint64_t word, int index) { return (word >> index) & 1; }

// The register states the operating system saves (XCR0); 0 if it saves none beyond SSE.
std::uint64_t saved_states(const CpuidWords& leaf1) {
  if (!bit(leaf1.ecx, 27)) return 0;  // OSXSAVE
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Tile data is large, so Linux grants it per process and on request only. Asked for once, here: a
// level that is reported as present can be used. Empty if granted, else the reason.
std::string request_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestXcompPermission = 0x1023;
  constexpr int kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestXcompPermission, kTileData) == 0) return "";
  return std::string("the kernel does not grant the tile registers: ") + std::strerror(errno);
#else
  return "this operating system is not asked for the tile registers";
#endif
}

std::vector<IsaStatus> read_machine() {
  const CpuidWords leaf1 = cpuid(1, 0);
  const CpuidWords leaf7 = cpuid(7, 0);
  const CpuidWords leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : CpuidWords{};
  const std::uint64_t states = saved_states(leaf1);
  const bool ymm_saved = (states & 0x06) == 0x06;
  const bool zmm_saved = (states & 0xe6) == 0xe6;
  const bool tiles_saved = (states & 0x60000) == 0x60000;

  std::string avx2 = missing("the processor", {{"avx2", bit(leaf7.ebx, 5)},
                                               {"fma", bit(leaf1.ecx, 12)},
                                               {"f16c", bit(leaf1.ecx, 29)},
                                               {"bmi2", bit(leaf7.ebx, 8)}});
  if (avx2.empty() && !ymm_saved) avx2 = "the operating system does not save the YMM registers";

  std::string avxvnni = avx2;
  if (avxvnni.empty()) {
    avxvnni = missing("the processor", {{"avx_vnni", bit(leaf7_1.eax, 4)}});
  }

  std::string avx512 = avx2;
  if (avx512.empty()) {
    avx512 = missing("the processor", {{"avx512f", bit(leaf7.ebx, 16)},
                                       {"avx512dq", bit(leaf7.ebx, 17)},
                                       {"avx512bw", bit(leaf7.ebx, 30)},
                                       {"avx512vl", bit(leaf7.ebx, 31)},
                                       {"avx512_vnni", bit(leaf7.ecx, 11)}});
  }
  if (avx512.empty() && !zmm_saved) avx512 = "the operating system does not save the ZMM registers";

  std::string amx = avx512;
  if (amx.empty()) {
    amx = missing("the processor", {{"amx_tile", bit(leaf7.edx, 24)},
                                    {"amx_int8", bit(leaf7.edx, 25)},
                                    {"avx512_vbmi", bit(leaf7.ecx, 1)}});
  }
  if (amx.empty() && !tiles_saved) amx = "the operating system does not save the tile registers";
  if (amx.empty()) amx = request_tiles();

  const std::string other = "belongs to AArch64, this is x86-64";
  return {{Isa::amx, amx.empty(), amx},
          {Isa::avx512vnni, avx512.empty(), avx512},
          {Isa::avxvnni, avxvnni.empty(), avxvnni},
          {Isa::avx2, avx2.empty(), avx2},
          {Isa::i8mm, false, other},
          {Isa::neon, false, other},
          {Isa::scalar, true, ""}};
}

#elif defined(__aarch64__)

// What the levels ask for: half precision arithmetic, dot products, int8 matrix products.
struct ArmFeatures {
  bool asimdhp = false, asimddp = false, i8mm = false;
};

#if defined(__linux__)

// Bits of the kernel's <asm/hwcap.h>, which older headers lack.
ArmFeatures read_features() {
  constexpr unsigned long kAsimdHp = 1ul << 10, kAsimdDp = 1ul << 20;  // AT_HWCAP
  constexpr unsigned long kI8mm = 1ul << 13;                           // AT_HWCAP2
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  return {(caps & kAsimdHp) != 0, (caps & kAsimdDp) != 0, (caps2 & kI8mm) != 0};
}

#elif defined(__APPLE__)

// A name the system does not know is a feature it does not have.
bool has_feature(const char* name) {
  int value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

ArmFeatures read_features() {
  return {has_feature("hw.optional.arm.FEAT_FP16"), has_feature("hw.optional.arm.FEAT_DotProd"),
          has_feature("hw.optional.arm.FEAT_I8MM")};
}

#else
#error "musespark reads AArch64 features on Linux and macOS"
#endif

std::vector<IsaStatus> read_machine() {
  const ArmFeatures has = read_features();
  const std::string neon =
      missing("the processor", {{"asimdhp", has.asimdhp}, {"asimddp", has.asimddp}});
  const std::string i8mm = neon.empty() ? missing("the processor", {{"i8mm", has.i8mm}}) : neon;
  const std::string other = "belongs to x86-64, this is AArch64";
  return {{Isa::amx, false, other},        {Isa::avx512vnni, false, other},
          {Isa::avxvnni, false, other},    {Isa::avx2, false, other},
          {Isa::i8mm, i8mm.empty(), i8mm}, {Isa::neon, neon.empty(), neon},
          {Isa::scalar, true, ""}};
}

#endif

std::string names_of_present(std::span<const IsaStatus> report) {
  std::string names;
  for (const IsaStatus& status : report) {
    if (status.present) names += std::string(names.empty() ? "" : ", ") + isa_name(status.isa);
  }
  return names;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx2:
      return "avx2";
    case Isa::i8mm:
      return "i8mm";
    case Isa::neon:
      return "neon";
    case Isa::scalar:
      return "scalar";
  }
  throw Error("isa_name: no such level");
}

std::span<const IsaStatus> isa_report() {
  static const std::vector<IsaStatus> report = read_machine();
  return report;
}

std::vector<Isa> choose_isa_levels(std::span<const IsaStatus> report, const char* forced) {
  std::vector<Isa> levels;
  bool reached = forced == nullptr;
  for (const IsaStatus& status : report) {
    if (!reached && std::strcmp(forced, isa_name(status.isa)) == 0) {
      if (!status.present) {
        throw Error("MUSESPARK_ISA=" + std::string(forced) + ": " + status.reason +
                    "; this machine has " + names_of_present(report));
      }
      reached = true;
    }
    if (reached && status.present) levels.push_back(status.isa);
  }
  if (!reached) {
    throw Error("MUSESPARK_ISA='" + std::string(forced) +
                "' is no instruction-set level; this machine has " + names_of_present(report));
  }
  return levels;
}

std::span<const Isa> isa_levels() {
  static const std::vector<Isa> levels =
      choose_isa_levels(isa_report(), std::getenv("MUSESPARK_ISA"));
  return levels;
}

std::string cpu_model() {
#if defined(__x86_64__)
  std::string name;
  for (std::uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    const CpuidWords words = cpuid(leaf, 0);
    for (const std::uint32_t word : {words.eax, words.ebx, words.ecx, words.edx}) {
      char letters[4];
      std::memcpy(letters, &word, 4);
      name.append(letters, 4);
    }
  }
  name.resize(std::strlen(name.c_str()));
  const auto first = name.find_first_not_of(' ');
  return first == std::string::npos ? "" : name.substr(first);
#else
  return "";
#endif
}

}  // namespace musespark

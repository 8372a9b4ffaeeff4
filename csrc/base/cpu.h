// Which instruction sets this machine offers, and which of them this process may use.
//
// MUSESPARK_ISA=<level> caps the choice: that level is the best one used. A name that is unknown or
// that the machine lacks is an Error, never a quiet fallback.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace musespark {

// A level is a set of instructions that kernel files are compiled for; its name ends their file
// names (avx512vnni.cc). Best first, scalar last.
enum class Isa : std::uint8_t { amx, avx512vnni, avxvnni, avx2, i8mm, neon, scalar };
inline constexpr int kIsaCount = 7;

const char* isa_name(Isa isa);

struct IsaStatus {
  Isa isa;
  bool present;
  std::string reason;  // why it is absent; empty if present
};

// Every level, best first, as cpuid and the operating system tell; AMX's tiles are requested from
// the system for this process. Read once per process.
std::span<const IsaStatus> isa_report();

// The levels dispatch may take, best first and scalar last: those present, from MUSESPARK_ISA down
// if that is set. A dispatch table takes, per operation, the first of these that has a kernel.
// Chosen at the first call, the same ever after; throws Error for a bad MUSESPARK_ISA.
std::span<const Isa> isa_levels();

// The same choice as a function of its inputs: `forced` is the value of MUSESPARK_ISA or null.
std::vector<Isa> choose_isa_levels(std::span<const IsaStatus> report, const char* forced);

// The processor's own name for itself, or an empty string.
std::string cpu_model();

}  // namespace musespark

// The floating point environment every job runs in: round to nearest even, subnormals honoured,
// no traps. Imported libraries do change it (flush-to-zero comes with anything linked with
// -ffast-math), and a changed environment changes bits.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace musespark {

// Sets the environment for its scope and restores what was there, sticky flags included.
class FloatEnv {
 public:
  FloatEnv() : saved_(read()) { write(kDefault); }
  ~FloatEnv() { write(saved_); }
  FloatEnv(const FloatEnv&) = delete;
  FloatEnv& operator=(const FloatEnv&) = delete;

#if defined(__x86_64__)
  using Word = std::uint32_t;                   // MXCSR
  static constexpr Word kDefault = 0x1f80;      // all exceptions masked, nearest, FTZ = DAZ = 0
  static constexpr Word kFlushToZero = 0x8040;  // FTZ | DAZ
  static constexpr Word kStickyFlags = 0x003f;
  static Word read() { return _mm_getcsr(); }
  static void write(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = std::uint64_t;  // FPCR
  static constexpr Word kDefault = 0;
  static constexpr Word kFlushToZero = 1u << 24;
  static constexpr Word kStickyFlags = 0;  // they live in FPSR
  static Word read() {
    Word word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { __asm__ volatile("msr fpcr, %0" ::"r"(word)); }
#else
#error "musespark supports x86-64 and AArch64"
#endif

 private:
  Word saved_;
};

}  // namespace musespark

// What a machine can do at most: bytes read from memory, int8 and f32 operations, each a second.
// cc -O3 -march=native -pthread limits.c; driven over standard input, one number a line in answer:
//
//   read THREADS STREAMS AHEAD PASSES   1 GiB by THREADS, each in STREAMS streams with software
//                                       prefetch AHEAD bytes ahead (0: none); best of PASSES
//   peak NAME THREADS PASSES            registers alone; NAME as in kPeaks
//   names                               what this build and processor have, in one line
//
// Accumulators of the peaks stay in registers: a spilled one costs a store per operation and hides
// more than half of the peak (tests/python/test_bench_limits.py reads the machine code). Twelve
// independent chains outlast the latency of each instruction here.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__linux__) && defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { kMaxThreads = 256, kLoops = 10000000, kChains = 12 };
static const size_t kBytes = 1ul << 30;

static char* buffer;
static int threads, streams, ahead;
static volatile uint64_t sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double best(void* (*part)(void*), int passes) {
  pthread_t started[kMaxThreads];
  double least = 1e9;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = now();
    for (long i = 0; i < threads; ++i) {
      if (pthread_create(&started[i], 0, part, (void*)i)) exit(1);
    }
    for (int i = 0; i < threads; ++i) pthread_join(started[i], 0);
    const double took = now() - start;
    if (took < least) least = took;
  }
  return least;
}

// ---- reading ------------------------------------------------------------------------------------

typedef uint64_t Line __attribute__((vector_size(64)));  // a cache line, in as many registers

// Each thread touches what it reads, so that its pages lie in its memory.
static void* fill_part(void* arg) {
  const size_t part = kBytes / threads / 64 * 64;
  memset(buffer + (long)arg * part, 1, part);
  return 0;
}

static inline __attribute__((always_inline)) void read_streams(const char* base, size_t part,
                                                               int count) {
  Line sums[8] = {{0}};
  for (size_t i = 0; i + 64 <= part; i += 64) {
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j) {
      const char* at = base + j * part + i;
      if (ahead) __builtin_prefetch(at + ahead, 0, 3);
      sums[j] ^= *(const Line*)at;
    }
  }
  for (int j = 1; j < count; ++j) sums[0] ^= sums[j];
  for (int k = 0; k < 8; ++k) sink += sums[0][k];
}

static void* read_part(void* arg) {
  const size_t part = kBytes / threads / streams / 64 * 64;
  const char* base = buffer + (long)arg * (part * streams);
  switch (streams) {
    case 1: read_streams(base, part, 1); break;
    case 2: read_streams(base, part, 2); break;
    case 4: read_streams(base, part, 4); break;
    default: read_streams(base, part, 8);
  }
  return 0;
}

static double read_speed(int passes) {
  if (!buffer) {
    buffer = mmap(0, kBytes + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return perror("mmap"), exit(1), 0;
    best(fill_part, 1);
  }
  const size_t part = kBytes / threads / streams / 64 * 64;
  return (double)part * streams * threads / best(read_part, passes);
}

// ---- computing ----------------------------------------------------------------------------------

#define TWELVE(DO) \
  DO(a0) DO(a1) DO(a2) DO(a3) DO(a4) DO(a5) DO(a6) DO(a7) DO(a8) DO(a9) DO(a10) DO(a11)
#define DECLARE(a) a = {0},
#define STEP_OF(VECTOR, STEP)                                              \
  VECTOR TWELVE(DECLARE) x = {0};                                          \
  for (long k = 0; k < kLoops; ++k) {                                      \
    TWELVE(STEP)                                                           \
  }                                                                        \
  VECTOR all = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11; \
  sink += (uint64_t)all[0];
#define PEAK(NAME, VECTOR, STEP)                                     \
  static __attribute__((noinline, used)) void* peak_##NAME(void* arg) { \
    STEP_OF(VECTOR, STEP)                                            \
    return arg;                                                      \
  }

#if defined(__x86_64__)
typedef float Floats __attribute__((vector_size(32)));
typedef int Ints __attribute__((vector_size(32)));
#endif
#if defined(__AVX512F__)
typedef float WideFloats __attribute__((vector_size(64)));
typedef int WideInts __attribute__((vector_size(64)));
#define FMA512(a) __asm__ volatile("vfmadd231ps %1,%1,%0" : "+v"(a) : "v"(x));
PEAK(f32_avx512, WideFloats, FMA512)
#endif
#if defined(__AVX512VNNI__)
#define DOT512(a) __asm__ volatile("vpdpbusd %1,%1,%0" : "+v"(a) : "v"(x));
PEAK(avx512vnni, WideInts, DOT512)
#endif
#if defined(__AVXVNNI__)
#define DOT256(a) __asm__ volatile("%{vex%} vpdpbusd %1,%1,%0" : "+x"(a) : "x"(x));
PEAK(avxvnni, Ints, DOT256)
#endif
#if defined(__AVX2__) && defined(__FMA__)
#define FMA256(a) __asm__ volatile("vfmadd231ps %1,%1,%0" : "+x"(a) : "x"(x));
PEAK(f32_avx2, Floats, FMA256)
// Bytes to int16 pairs, to int32, added: the exact product of 8-bit values without VNNI.
#define MADD256(a)                                                                 \
  {                                                                                \
    Ints pairs;                                                                    \
    __asm__ volatile("vpmaddubsw %2,%2,%1\n\tvpmaddwd %2,%1,%1\n\tvpaddd %1,%0,%0" \
                     : "+x"(a), "=&x"(pairs)                                       \
                     : "x"(x));                                                    \
  }
PEAK(avx2, Ints, MADD256)
#endif

#if defined(__linux__) && defined(__AMX_INT8__)
enum { kTileLoops = 2000000 };

// Two row tiles times two column tiles of 16 x 64 bytes: four accumulators, as a kernel has them.
static __attribute__((noinline, used)) void* peak_amx(void* arg) {
  struct __attribute__((aligned(64))) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } tiles = {.palette = 1};
  for (int i = 0; i < 8; ++i) tiles.bytes[i] = 64, tiles.rows[i] = 16;
  __asm__ volatile("ldtilecfg %0" : : "m"(tiles));
  __asm__ volatile(
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
      "tilezero %%tmm4\n\ttilezero %%tmm5\n\ttilezero %%tmm6\n\ttilezero %%tmm7" ::
          : "memory");
  for (long k = 0; k < kTileLoops; ++k) {
    __asm__ volatile(
        "tdpbssd %tmm6,%tmm4,%tmm0\n\ttdpbssd %tmm7,%tmm4,%tmm1\n\t"
        "tdpbssd %tmm6,%tmm5,%tmm2\n\ttdpbssd %tmm7,%tmm5,%tmm3");
  }
  __asm__ volatile("tilerelease" ::: "memory");
  return arg;
}

// The system gives the tiles' state to who asks for it.
static int have_amx(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif

#if defined(__aarch64__)
typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
#define FMA128(a) __asm__ volatile("fmla %0.4s,%1.4s,%1.4s" : "+w"(a) : "w"(x));
PEAK(f32_neon, Floats, FMA128)
#if defined(__ARM_FEATURE_DOTPROD)
#define DOT128(a) __asm__ volatile("sdot %0.4s,%1.16b,%1.16b" : "+w"(a) : "w"(x));
PEAK(neon, Ints, DOT128)
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define MMLA128(a) __asm__ volatile("smmla %0.4s,%1.16b,%1.16b" : "+w"(a) : "w"(x));
PEAK(i8mm, Ints, MMLA128)
#endif
#endif

static int always(void) { return 1; }

// Names are those of our kernel levels; operations are 2 for each multiply-add.
static const struct {
  const char* name;
  void* (*part)(void*);
  double operations;  // of one thread
  int (*have)(void);
} kPeaks[] = {
#if defined(__linux__) && defined(__AMX_INT8__)
    {"amx", peak_amx, kTileLoops * 4.0 * 2 * 16 * 16 * 64, have_amx},
#endif
#if defined(__AVX512VNNI__)
    {"avx512vnni", peak_avx512vnni, (double)kLoops* kChains * 128, always},
#endif
#if defined(__AVXVNNI__)
    {"avxvnni", peak_avxvnni, (double)kLoops* kChains * 64, always},
#endif
#if defined(__AVX2__) && defined(__FMA__)
    {"avx2", peak_avx2, (double)kLoops* kChains * 64, always},
#endif
#if defined(__AVX512F__)
    {"f32_avx512", peak_f32_avx512, (double)kLoops* kChains * 32, always},
#endif
#if defined(__AVX2__) && defined(__FMA__)
    {"f32_avx2", peak_f32_avx2, (double)kLoops* kChains * 16, always},
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    {"i8mm", peak_i8mm, (double)kLoops* kChains * 64, always},
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    {"neon", peak_neon, (double)kLoops* kChains * 32, always},
#endif
#if defined(__aarch64__)
    {"f32_neon", peak_f32_neon, (double)kLoops* kChains * 8, always},
#endif
    {0, 0, 0, 0}};

static double peak_speed(const char* name, int passes) {
  for (int i = 0; kPeaks[i].name; ++i) {
    if (strcmp(kPeaks[i].name, name) || !kPeaks[i].have()) continue;
    return threads * kPeaks[i].operations / best(kPeaks[i].part, passes);
  }
  return 0;
}

int main(void) {
  char line[128], name[64];
  int passes;
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "read %d %d %d %d", &threads, &streams, &ahead, &passes) == 4) {
      if (threads < 1 || threads > kMaxThreads || streams < 1) return 2;
      printf("%.0f\n", read_speed(passes));
    } else if (sscanf(line, "peak %63s %d %d", name, &threads, &passes) == 3) {
      if (threads < 1 || threads > kMaxThreads) return 2;
      printf("%.0f\n", peak_speed(name, passes));
    } else {
      for (int i = 0; kPeaks[i].name; ++i) {
        if (kPeaks[i].have()) printf("%s ", kPeaks[i].name);
      }
      printf("\n");
    }
    fflush(stdout);
  }
  return 0;
}

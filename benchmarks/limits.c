// Machine limits: bytes per second read from memory, int8 operations per second of the dot
// instruction. cc -O3 -march=native -pthread limits.c -o limits; limits read|dot THREADS
//
// Reads: 1 GiB, four streams a thread with software prefetch, best of 7 passes; accumulators stay in
// registers (a spilled accumulator costs a store per operation and hides the real peak). Dot: 12
// independent chains of the 512-bit (else 256-bit) dpbusd. Needs AVX2; prints 0 for dot without VNNI.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static const size_t kBytes = 1ul << 30;
static const long kLoops = 40000000;
static char* buffer;
static int threads;
static volatile long sink;

static void* read_part(void* arg) {
  const size_t part = kBytes / threads / 4;
  const char* base = buffer + (long)arg * (kBytes / threads);
  __m256i s[8];
  for (int i = 0; i < 8; ++i) s[i] = _mm256_setzero_si256();
  for (size_t i = 0; i + 64 <= part; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const char* p = base + j * part + i;
      _mm_prefetch(p + 2048, _MM_HINT_T0);
      s[2 * j] = _mm256_add_epi64(s[2 * j], _mm256_loadu_si256((const __m256i*)p));
      s[2 * j + 1] = _mm256_add_epi64(s[2 * j + 1], _mm256_loadu_si256((const __m256i*)(p + 32)));
    }
  }
  for (int i = 1; i < 8; ++i) s[0] = _mm256_add_epi64(s[0], s[i]);
  sink += _mm256_extract_epi64(s[0], 0) + _mm256_extract_epi64(s[0], 3);
  return 0;
}

#if defined(__AVX512VNNI__)
#define VECTOR __m512i
#define ZERO _mm512_setzero_si512()
#define ONES _mm512_set1_epi8(1)
static const double kOperations = 128;
#elif defined(__AVXVNNI__)
#define VECTOR __m256i
#define ZERO _mm256_setzero_si256()
#define ONES _mm256_set1_epi8(1)
static const double kOperations = 64;
#endif

static void* dot_part(void* arg) {
  (void)arg;
#ifdef VECTOR
  VECTOR a0 = ZERO, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0, a9 = a0,
         a10 = a0, a11 = a0, x = ONES;
#define DOT(a) __asm__ volatile("vpdpbusd %1,%1,%0" : "+v"(a) : "v"(x));
  for (long k = 0; k < kLoops; ++k) {
    DOT(a0) DOT(a1) DOT(a2) DOT(a3) DOT(a4) DOT(a5) DOT(a6) DOT(a7) DOT(a8) DOT(a9) DOT(a10) DOT(a11)
  }
  long first = 0;
  memcpy(&first, &a0, sizeof first);
  sink += first;
#endif
  return 0;
}

static double best(void* (*part)(void*), int passes) {
  pthread_t t[256];
  double least = 1e9;
  for (int r = 0; r < passes; ++r) {
    const double start = now();
    for (long i = 0; i < threads; ++i) pthread_create(&t[i], 0, part, (void*)i);
    for (int i = 0; i < threads; ++i) pthread_join(t[i], 0);
    const double took = now() - start;
    if (took < least) least = took;
  }
  return least;
}

int main(int argc, char** argv) {
  threads = argc == 3 ? atoi(argv[2]) : 0;
  if (threads < 1 || threads > 256) return fprintf(stderr, "limits read|dot THREADS(1..256)\n"), 2;
  if (!strcmp(argv[1], "read")) {
    buffer = mmap(0, kBytes + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return perror("mmap"), 1;
    memset(buffer, 1, kBytes + 8192);
    printf("%.0f\n", kBytes / best(read_part, 7));
    return 0;
  }
#ifdef VECTOR
  printf("%.0f\n", threads * (double)kLoops * 12 * kOperations / best(dot_part, 3));
#else
  printf("0\n");
#endif
  return 0;
}

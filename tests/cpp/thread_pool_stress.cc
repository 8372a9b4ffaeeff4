// Built with -fsanitize=thread and run by tests/python/test_base_races.py: every path of the pool
// that two threads can meet in. Exits with 0, or with ThreadSanitizer's report.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

using musespark::ThreadPool;

namespace {

long mistakes = 0;

// Plain writes from workers, plain reads by the caller: a race if the pool did not order them.
void check_sums(ThreadPool& pool, int jobs, std::int64_t items, std::int64_t chunk) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(items));
  for (int job = 1; job <= jobs; ++job) {
    pool.run_chunks(items, chunk, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) values[static_cast<std::size_t>(i)] += i * job;
    });
  }
  const std::int64_t factor = std::int64_t{jobs} * (jobs + 1) / 2;
  for (std::int64_t i = 0; i < items; ++i)
    mistakes += values[static_cast<std::size_t>(i)] != i * factor;
}

void check_failures(ThreadPool& pool) {
  for (int job = 0; job < 300; ++job) {
    try {
      pool.run(50, [&](std::int64_t item, int) {
        if (item % 7 == 3) throw std::runtime_error("expected");
      });
      ++mistakes;
    } catch (const std::runtime_error&) {
    }
  }
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    check_sums(pool, 3000, 12, 1);
    check_sums(pool, 300, 1000, 64);
    for (int i = 0; i < 20; ++i) {  // past the spinning time, so that workers are woken
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      check_sums(pool, 2, 40, 1);
    }
    check_failures(pool);
    // The caller sleeps until a slow worker is done.
    for (int i = 0; i < 20; ++i) {
      pool.run(threads, [&](std::int64_t item, int) {
        std::this_thread::sleep_for(std::chrono::microseconds(item == 0 ? 10 : 600));
      });
    }
  }
  {
    ThreadPool pool(3);
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) callers.emplace_back([&] { check_failures(pool); });
    for (std::thread& caller : callers) caller.join();
  }
  for (int i = 0; i < 200; ++i) ThreadPool pool(3);  // stopped while the workers still start
  if (mistakes) std::fprintf(stderr, "%ld wrong results\n", mistakes);
  return mistakes != 0;
}

// Runs the pieces of an operation: on the thread pool, or inline where that is quicker than waking
// it. The bits of a result never depend on which; every piece writes its own outputs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "base/float_env.h"
#include "base/thread_pool.h"

namespace musespark {

class Jobs {
 public:
  explicit Jobs(ThreadPool& pool)
      : pool_(&pool), scratch_(static_cast<std::size_t>(pool.threads())) {}

  int threads() const { return pool_->threads(); }

  // Makes every thread's scratch at least `bytes` long, zero bytes at first. Not inside a job.
  void reserve_scratch(std::int64_t bytes) {
    for (AlignedBuffer& buffer : scratch_) {
      if (buffer.size() < static_cast<std::size_t>(bytes)) {
        buffer = AlignedBuffer();
        buffer = AlignedBuffer(static_cast<std::size_t>(bytes));
      }
    }
  }
  std::byte* scratch(int worker) { return scratch_[static_cast<std::size_t>(worker)].data(); }

  // task(begin, end, worker) over cuts of [0, items). `cost` is the estimated time of an item in
  // nanoseconds of one thread; it decides the cuts, never a result. Cuts are multiples of `grain`
  // items but for the last; there are about `cuts_per_thread` for each thread.
  template <class Task>
  void run(std::int64_t items, double cost, Task&& task, std::int64_t grain = 1,
           int cuts_per_thread = kCutsPerThread) {
    if (items <= 0) return;
    const double total = static_cast<double>(items) * cost;
    if (threads() == 1 || items <= grain || total < kInlineCost) {
      const FloatEnv environment;
      task(std::int64_t{0}, items, 0);
      return;
    }
    const double shares = static_cast<double>(threads()) * cuts_per_thread;
    const double least = std::max(kCutCost / std::max(cost, 1e-3), 1.0);
    const double cut = std::max(static_cast<double>(items) / shares, least);
    const auto grains = static_cast<std::int64_t>(cut / static_cast<double>(grain));
    pool_->run_chunks(items, std::clamp<std::int64_t>(grains, 1, items) * grain, task);
  }

 private:
  static constexpr double kInlineCost =
      6000;                                 // about three times what a job costs to start and end
  static constexpr double kCutCost = 2000;  // far above what claiming a cut costs
  static constexpr int kCutsPerThread = 8;  // so that a thread that lost its core delays little

  ThreadPool* pool_;
  std::vector<AlignedBuffer> scratch_;
};

}  // namespace musespark

// One pool of threads that spin for a moment and then sleep.
//
// A job is a range of items. Each thread has an equal share of neighbours, which it takes chunk by
// chunk; who is done claims chunks of the others' shares. The calling thread works too. Nothing
// about a result may depend on which thread took which chunk: jobs write disjoint outputs. A worker
// that does not get a core in time is not waited for.
#pragma once

#include <cstdint>
#include <memory>

#include "base/function_ref.h"

namespace musespark {

class ThreadPool {
 public:
  // One call covers items [begin, end). `worker` is in [0, threads()), the caller's is 0, and no
  // two running calls share one: index scratch memory with it.
  using ChunkTask = FunctionRef<void(std::int64_t begin, std::int64_t end, int worker)>;
  using ItemTask = FunctionRef<void(std::int64_t item, int worker)>;

  // `threads` counts the caller, so threads - 1 are started. Throws InvalidRequest unless it is
  // between 1 and kMaxThreads, Error if the system refuses a thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 1024;
  int threads() const;

  // Runs the task over [0, items) and returns when every item is done. The floating point
  // environment is FloatEnv's on every participating thread and restored afterwards.
  //
  // An exception stops the claiming of further chunks and is rethrown here; of several, the one of
  // the lowest item. Calls from several threads run one after the other. Throws Error from inside a
  // task of the same pool, and in a process forked after the pool was made (it has no threads).
  void run(std::int64_t items, ItemTask task);
  void run_chunks(std::int64_t items, std::int64_t chunk, ChunkTask task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace musespark

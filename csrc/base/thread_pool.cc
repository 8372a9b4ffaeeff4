#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/errors.h"
#include "base/float_env.h"

namespace musespark {
namespace {

// How long a thread spins before it sleeps: longer than the gap between two jobs of one step, far
// shorter than a person notices.
constexpr std::chrono::microseconds kSpin{80};
constexpr int kPausesPerClockRead = 16;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until done() or the spin time is over; returns what done() said last.
template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (true) {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (done()) return true;
      pause();
    }
    if (std::chrono::steady_clock::now() >= end) return done();
  }
}

// Counts the forks this process descends from: a pool of another generation has no threads here.
std::atomic<std::uint64_t> fork_generation{0};

void watch_forks() {
  static std::once_flag once;
  std::call_once(once,
                 [] { pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1); }); });
}

// The pool whose task this thread is running, to refuse a nested run.
thread_local const void* pool_inside = nullptr;

}  // namespace

// The gate is one word that says everything about the current job:
//
//   bits 31..16  job number (wraps), so that a worker sees a new job
//   bit  15      open: workers may join
//   bit  14      the caller sleeps until the count is zero
//   bits 13..0   workers inside
//
// A worker joins by adding one while the gate is open. The caller opens the gate, works itself,
// closes it when no chunk is left, and waits for the count to reach zero. Whoever did not join in
// time has missed the job and touches nothing of it, so the job's fields are plain variables.
struct ThreadPool::State {
  // Items one thread takes first, in order: what it reads next follows in memory what it has just
  // read, and its prefetches are its own. Threads without items left help the others.
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  static constexpr std::uint32_t kJob = 1u << 16;
  static constexpr std::uint32_t kOpen = 1u << 15;
  static constexpr std::uint32_t kCallerSleeps = 1u << 14;
  static constexpr std::uint32_t kCount = kCallerSleeps - 1;

  std::atomic<std::uint32_t> gate{0};
  std::atomic<std::uint32_t> drained{0};  // changes when the last worker has left a closed gate
  std::atomic<bool> stopping{false};

  // The job. Written by the caller while the gate is closed and nobody is inside.
  const ChunkTask* task = nullptr;
  std::int64_t items = 0;
  std::int64_t chunk = 0;
  std::vector<Share> shares;  // one for each thread

  alignas(64) std::mutex failure_lock;
  std::exception_ptr failure;
  std::int64_t failed_item = 0;

  std::mutex callers;  // one job at a time
  std::uint64_t generation = 0;
  std::vector<std::thread> threads;

  void work(int worker);
  void serve(int worker);
  void leave();
  void open();
  void close_and_wait();
  void stop();
  void cut_shares();
  void work_on(Share& share, int worker);
  void record_failure(std::int64_t item);
};

// Shares of whole chunks, alike to one chunk.
void ThreadPool::State::cut_shares() {
  const auto count = static_cast<std::int64_t>(shares.size());
  const std::int64_t chunks = (items + chunk - 1) / chunk;
  for (std::int64_t i = 0; i < count; ++i) {
    Share& share = shares[static_cast<std::size_t>(i)];
    share.next.store(chunks * i / count * chunk, std::memory_order_relaxed);
    share.end = std::min(chunks * (i + 1) / count * chunk, items);
  }
}

void ThreadPool::State::record_failure(std::int64_t item) {
  for (Share& share : shares) share.next.store(share.end, std::memory_order_relaxed);
  const std::lock_guard guard(failure_lock);
  if (!failure || item < failed_item) {
    failure = std::current_exception();
    failed_item = item;
  }
}

void ThreadPool::State::work(int worker) {
  const FloatEnv environment;
  const void* outer = std::exchange(pool_inside, this);
  const std::size_t count = shares.size(), own = static_cast<std::size_t>(worker);
  for (std::size_t i = 0; i < count; ++i) work_on(shares[(own + i) % count], worker);
  pool_inside = outer;
}

void ThreadPool::State::work_on(Share& share, int worker) {
  while (share.next.load(std::memory_order_relaxed) < share.end) {
    const std::int64_t begin = share.next.fetch_add(chunk, std::memory_order_relaxed);
    if (begin >= share.end) return;
    try {
      (*task)(begin, std::min(chunk, share.end - begin) + begin, worker);
    } catch (...) {
      record_failure(begin);
    }
  }
}

void ThreadPool::State::leave() {
  const std::uint32_t before = gate.fetch_sub(1);
  const bool last = (before & kCount) == 1;
  if (last && !(before & kOpen) && (before & kCallerSleeps)) {
    drained.fetch_add(1);
    drained.notify_all();
  }
}

void ThreadPool::State::serve(int worker) {
  std::uint32_t served = 0;  // number of the job last joined or missed, in the job bits
  std::uint32_t seen = gate.load();
  const auto news = [&] {
    seen = gate.load();
    return stopping.load() || ((seen & kOpen) && (seen & ~(kJob - 1)) != served);
  };
  while (true) {
    if (!spin_until(news)) {
      while (!news()) gate.wait(seen);
    }
    if (stopping.load()) return;
    if (!gate.compare_exchange_strong(seen, seen + 1)) continue;
    served = seen & ~(kJob - 1);
    work(worker);
    leave();
  }
}

void ThreadPool::State::open() {
  const std::uint32_t number = (gate.load() & ~(kJob - 1)) + kJob;
  gate.store(number | kOpen);
  gate.notify_all();
}

void ThreadPool::State::close_and_wait() {
  gate.fetch_and(~kOpen);
  const auto empty = [&] { return (gate.load() & kCount) == 0; };
  if (spin_until(empty)) return;
  const std::uint32_t before = drained.load();
  if ((gate.fetch_or(kCallerSleeps) & kCount) != 0) drained.wait(before);
  gate.fetch_and(~kCallerSleeps);
}

void ThreadPool::State::stop() {
  stopping.store(true);
  gate.fetch_add(kJob);  // a changed word wakes the sleepers
  gate.notify_all();
  for (std::thread& thread : threads) thread.join();
}

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw InvalidRequest("threads: expected 1 to " + std::to_string(kMaxThreads) + ", received " +
                         std::to_string(threads));
  }
  watch_forks();
  state_ = std::make_unique<State>();
  state_->generation = fork_generation.load();
  state_->shares = std::vector<State::Share>(static_cast<std::size_t>(threads));
  state_->threads.reserve(static_cast<std::size_t>(threads) - 1);
  try {
    for (int worker = 1; worker < threads; ++worker) {
      state_->threads.emplace_back([state = state_.get(), worker] { state->serve(worker); });
    }
  } catch (const std::system_error& error) {
    state_->stop();
    throw Error("cannot start thread " + std::to_string(state_->threads.size() + 2) + " of " +
                std::to_string(threads) + ": " + error.what());
  }
}

ThreadPool::~ThreadPool() {
  if (state_->generation != fork_generation.load()) {
    // The threads stayed in the parent: joining would wait for ever, and destroying the handles of
    // threads not joined would end the process. The child keeps the few bytes.
    static_cast<void>(state_.release());
    return;
  }
  state_->stop();
}

int ThreadPool::threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run_chunks(std::int64_t items, std::int64_t chunk, ChunkTask task) {
  State& state = *state_;
  if (state.generation != fork_generation.load()) {
    throw Error("a model cannot be used after os.fork: its threads stayed in the parent process");
  }
  if (pool_inside == &state) throw Error("ThreadPool::run inside a task of the same pool");
  if (chunk < 1) throw Error("ThreadPool::run_chunks: chunk is " + std::to_string(chunk));
  if (items <= 0) return;
  const std::lock_guard one_job(state.callers);
  state.task = &task;
  state.items = items;
  // Every thread overshoots a counter at most once, by one chunk: it must not pass the type's end.
  state.chunk = std::min(chunk, items);
  state.cut_shares();
  state.failure = nullptr;
  const bool shared = !state.threads.empty() && items > state.chunk;
  if (shared) state.open();
  state.work(0);
  if (shared) state.close_and_wait();
  if (state.failure) std::rethrow_exception(std::exchange(state.failure, nullptr));
}

void ThreadPool::run(std::int64_t items, ItemTask task) {
  run_chunks(items, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
    for (std::int64_t item = begin; item < end; ++item) task(item, worker);
  });
}

}  // namespace musespark

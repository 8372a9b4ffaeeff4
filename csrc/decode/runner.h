// Runs an engine in one thread and hands what happens to another: whoever takes events may be slow,
// or have to wait for a lock (Python's), while the next steps are under way.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "decode/engine.h"

namespace musespark {

// Thread-safe; one thread at a time may be in run(), one in take().
class Runner {
 public:
  explicit Runner(Engine& engine) : engine_(engine) {}
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Steps until there is nothing left to do but to wait, or stop(). Events are handed over after
  // each Engine::run_until(slice_s), or kTellSeconds for each sequence that runs where that is
  // longer. Where events wait for longer than kAhead, so does the next step. Throws as run_until
  // does.
  void run(double slice_s);

  // Waits for events; none after end(), once all have been taken.
  std::vector<Event> take();

  // Now and from now on run() returns after the slice under way and one step more, which tells what
  // was written until then (and ends what was cancelled).
  void stop();
  // There will be no events any more.
  void end();

  // Several times what the server takes to send a piece of an answer: 64 are told of every 38 ms.
  static constexpr double kTellSeconds = 0.6e-3;
  // Far longer than a thread of Python keeps its lock while others want it (5 ms).
  static constexpr std::chrono::milliseconds kAhead{100};

 private:
  bool hand_over(std::vector<Event> events);

  Engine& engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Event> events_;
  std::chrono::steady_clock::time_point since_{};  // when the first of events_ came
  bool stopped_ = false, ended_ = false;
};

}  // namespace musespark

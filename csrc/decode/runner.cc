#include "decode/runner.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace musespark {

void Runner::run(double slice_s) {
  while (true) {
    std::vector<Event> events;
    const auto running = static_cast<double>(engine_.stats().running);
    engine_.run_until(std::max(slice_s, running * kTellSeconds), events);
    if (!hand_over(std::move(events))) break;
    if (!engine_.has_work() || engine_.waits_for_rows()) return;
  }
  std::vector<Event> events;
  engine_.run_until(0, events);
  hand_over(std::move(events));
}

// Whether to go on.
bool Runner::hand_over(std::vector<Event> events) {
  std::unique_lock lock(mutex_);
  if (!events.empty()) {
    if (events_.empty()) since_ = std::chrono::steady_clock::now();
    events_.insert(events_.end(), std::make_move_iterator(events.begin()),
                   std::make_move_iterator(events.end()));
    changed_.notify_all();
  }
  const bool late = std::chrono::steady_clock::now() - since_ > kAhead;
  changed_.wait(lock, [&] { return stopped_ || events_.empty() || !late; });
  return !stopped_;
}

std::vector<Event> Runner::take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !events_.empty() || ended_; });
  changed_.notify_all();
  return std::exchange(events_, {});
}

void Runner::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

void Runner::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

}  // namespace musespark

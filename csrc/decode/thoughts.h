// Which tokens of a sequence are thought, by its markers, and what becomes of their keys and
// values. A function of the tokens alone, so that a sequence that is computed again, in whatever
// chunks, is treated the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace musespark {

// Of a thought that has ended.
enum class ThoughtCache : std::uint32_t {
  keep,
  drop,  // for the next turn's prompt: the prompt's end stays at hand, the prefix tree gets no more
};

struct ThoughtParams {
  ThoughtCache cache = ThoughtCache::keep;
  // A thought begins after any of these sequences of markers and ends before any of those tokens.
  std::vector<std::vector<std::int32_t>> opens;
  std::vector<std::int32_t> closes;
};

// Tokens begin .. end - 1, markers not counted; end < 0: the thought goes on.
struct ThoughtSpan {
  std::int64_t begin, end;
  bool operator==(const ThoughtSpan&) const = default;
};

class ThoughtTracker {
 public:
  // Takes in the tokens that it has not seen; `tokens` are all of the sequence's.
  void see(const ThoughtParams& params, std::span<const std::int32_t> tokens);

  // In order, apart from each other; the last one may be open.
  const std::vector<ThoughtSpan>& spans() const { return spans_; }
  // Thought tokens among positions first .. size - 1.
  std::int64_t count(std::int64_t first, std::int64_t size) const;

 private:
  std::vector<ThoughtSpan> spans_;
  std::int64_t seen_ = 0;
};

// Throws InvalidRequest, naming the field, for markers that are no tokens of the vocabulary or
// none.
void check_thoughts(const ThoughtParams& params, std::int64_t vocab);

}  // namespace musespark

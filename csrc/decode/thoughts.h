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
  demote,  // whole pages inside it are sealed again in 4 bits
  drop,  // for the next turn's prompt: the prompt's end stays at hand, the prefix tree gets no more
};

struct ThoughtParams {
  ThoughtCache cache = ThoughtCache::keep;
  // The most rows that a thought under way has in layers without a window, beside those in the page
  // that it begins in; when there are so many a quarter of them goes. 0: no limit. Of thoughts
  // after the prompt.
  std::int64_t most_tokens = 0;
  // A thought begins after any of these sequences and ends before any of those tokens.
  std::vector<std::vector<std::int32_t>> opens;
  std::vector<std::int32_t> closes;
  // Where channels have headers: the markers that one begins with and ends with, `opens` too.
  // Negative: none.
  std::int32_t header = -1, content = -1;
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
  // Whether the last one goes on.
  bool open() const { return !spans_.empty() && spans_.back().end < 0; }
  // Thought tokens among positions first .. size - 1.
  std::int64_t count(std::int64_t first, std::int64_t size) const;
  // Tokens so far that are no thought's, no marker of a thought's and no channel's header.
  std::int64_t said() const { return said_; }

 private:
  void open_where_marked(const ThoughtParams& params, std::span<const std::int32_t> so_far);

  std::vector<ThoughtSpan> spans_;
  std::int64_t said_ = 0;
  bool in_header_ = false;
  std::int64_t seen_ = 0;
};

// What is left of `most_tokens` rows when some go.
constexpr std::int64_t rows_left(std::int64_t most_tokens) { return most_tokens - most_tokens / 4; }
inline constexpr std::int64_t kLeastThoughtTokens = 32;

// Throws InvalidRequest, naming the field, for a limit that is too low, for markers that are no
// tokens of the vocabulary or none.
void check_thoughts(const ThoughtParams& params, std::int64_t vocab);

}  // namespace musespark

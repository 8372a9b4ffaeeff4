// What a sequence may write next, by rules from outside: a schema, a grammar.
#pragma once

#include <cstdint>
#include <span>

namespace musespark {

enum class Allowed : std::uint8_t {
  all,   // every id
  some,  // those whose bits are set
  end,   // none: the sequence ends here, without an id for its end
};

// Of one sequence. The engine asks before each of its tokens is sampled, after the forward pass and
// in the thread of run_until, without holding a lock: it may take its time, and every other row of
// the step waits meanwhile. What it says must depend on the tokens alone, or the one result of the
// engine is gone.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Takes in the tokens of the completion since the last call (none at the first one) and says what
  // may follow all of them. Inside a thought that has trials (decode/trial.h) it may be told of
  // tokens that are taken back: what it says there must not depend on them, nor be `end`. `ids`: a
  // bit for each of the vocabulary, id i in bit i % 64 of word i / 64, all zero when it is called.
  // What it throws ends the sequence, with ErrorKind::constraint, and no other.
  virtual Allowed next(std::span<const std::int32_t> tokens, std::span<std::uint64_t> ids) = 0;
};

}  // namespace musespark

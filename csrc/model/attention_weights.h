// Where the last tokens of a sequence look: the weights of attention, which decoding never writes
// down, computed again from cached keys. A measurement, in float32 and double, not the kernels'
// integers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "cache/sequence.h"
#include "model/text_model.h"

namespace musespark {

struct KeySpan {
  std::int64_t first, count;  // positions
};

// What a layer adds to the products of queries and keys: see AttentionSpec.
struct LayerScores {
  float softcap = 0;
  const float* sinks = nullptr;  // [heads] or null
};

// [layers without a window][rows][positions of the spans], the mean over heads of
//
//     softmax over the positions up to the row's (and the sink) of cap(query . key)
//
// for the last `rows` tokens of the sequence, whose queries are in `log`: 1 <= rows <= kRows. All
// of the sequence's tokens are accepted, none evicted, and the spans inside. `layers`: of the whole
// model.
std::vector<float> attention_weights(const Sequence& sequence, const QueryLog& log,
                                     std::span<const LayerScores> layers,
                                     std::span<const KeySpan> spans, std::int64_t rows,
                                     ThreadPool& threads);

}  // namespace musespark

// What the steps of a model take beside weights, keys and values, from its spec alone.
#pragma once

#include <cstdint>

#include "model/spec.h"

namespace musespark {

struct StepSizes {
  std::int64_t rows = 1;       // of the largest step
  std::int64_t tokens = 1;     // of the longest sequence
  std::int64_t sequences = 1;  // that get a row of logits in one step
  std::int64_t threads = 1;
  bool floats = true;  // matrices are f32 or bf16: they read floats, and need no scratch
  int forms = 1;       // quantized ones that some input is read in: two where q4 and q8 meet
};

// Bytes. The partial results of attention, lists and page tables are not in it: they are small.
struct StepMemory {
  std::int64_t activations;  // Workspace and ExpertsRunner
  std::int64_t scratch;      // of all threads (Jobs)
  std::int64_t ropes;        // tables of positions
  std::int64_t logits;
  std::int64_t total() const { return activations + scratch + ropes + logits; }
};

StepMemory step_memory(const ModelSpec& spec, const StepSizes& sizes);

}  // namespace musespark

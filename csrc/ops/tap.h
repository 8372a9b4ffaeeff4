// Looks at the inputs of a model's matrix products, and of attention, while a step computes them.
#pragma once

#include <cstdint>
#include <span>

#include "ops/attention.h"
#include "ops/linear.h"

namespace musespark {

// Which matrices of a layer read the rows (names in csrc/model/README.md).
enum class InputOf : std::uint32_t {
  attn,         // q, k, v, attn_gate
  o,            // o
  mlp,          // gate, up, shared_gate, shared_up, expert_in, router
  down,         // down
  expert,       // experts.{e}.gate, experts.{e}.up
  expert_down,  // experts.{e}.down
  shared_down,  // shared_down
  expert_out,   // expert_out
  head          // head, or embed where the head is tied
};

// A layer's attention, before it runs: the step's keys and values are in their pages.
struct HeadsSeen {
  const AttentionShape& shape;
  std::span<const AttentionSpan> spans;
  std::int64_t rows;
  const float* queries;  // [kv_heads][rows][group][Dp], scaled
  const float* sinks;    // [heads] or null
};

class InputTap {
 public:
  virtual ~InputTap() = default;
  // Called on the thread that runs the step, between jobs. The rows are as the matrices read them:
  // floats, or quantized alone. `expert` is 0 but for expert and expert_down, `layer` but for head.
  virtual void see(InputOf what, std::int64_t layer, std::int64_t expert, const Rows& rows) = 0;
  virtual void see_heads(std::int64_t /*layer*/, const HeadsSeen& /*heads*/) {}
};

}  // namespace musespark

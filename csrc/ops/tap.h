// Looks at the inputs of a model's matrix products while a step computes them.
#pragma once

#include <cstdint>

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

class InputTap {
 public:
  virtual ~InputTap() = default;
  // Called on the thread that runs the step, between jobs. The rows are as the matrices read them:
  // floats, or quantized alone. `expert` is 0 but for expert and expert_down, `layer` but for head.
  virtual void see(InputOf what, std::int64_t layer, std::int64_t expert, const Rows& rows) = 0;
};

}  // namespace musespark

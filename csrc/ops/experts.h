// A layer of experts: for each row the router chooses some MLPs, whose outputs are added.
//
// One result: a row's choice, its experts' outputs and the order they are added in (ascending
// expert index) depend on the row alone, never on the batch it is in.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/norm.h"
#include "ops/rows_buffer.h"
#include "ops/tap.h"

namespace musespark {

struct Router {
  enum class Scores : std::uint8_t { softmax, softmax_chosen, sigmoid };
  Matrix matrix;                      // [experts, hidden]; its bias is added to the logits
  const float* correction = nullptr;  // [experts], added to scores for the choice alone, or null
  Scores scores = Scores::softmax;
  bool renormalize = false;
  float scale = 1.0f;         // of the logits
  float routed_scale = 1.0f;  // of the chosen scores
  std::int64_t chosen = 0;    // experts of a row
};

// The experts of one row from its logits [n], which are overwritten: `chosen` indices, ascending,
// and what their outputs are multiplied with. The largest scores (+ correction) win, the lower
// index among equals; not-a-number loses to every number. keys: [n], written over.
void choose_experts(const KernelTable& kernels, const Router& router, std::int64_t n, float* logits,
                    float* keys, std::int32_t* experts, float* weights);

struct Expert {
  Matrix gate, up, down;  // gate.packed.data null: not gated
  const Matrix* gate_or_null() const { return gate.packed.data ? &gate : nullptr; }
};

// What the working memory of a layer depends on.
struct ExpertsSizes {
  std::int64_t experts = 0, chosen = 0, hidden = 0, width = 0, intermediate = 0;
  std::int64_t shared_intermediate = 0;  // 0: no shared expert
  bool pooled = false;
  bool in_floats = true, down_floats = true;  // some gate or up, some down matrix reads floats
  int forms = 2;                              // quantized ones that some input is read in
};

struct Experts {
  Router router;
  std::vector<Expert> list;
  Gating gating;
  std::int64_t hidden = 0;
  std::int64_t width = 0;         // of the experts' inputs and outputs
  std::int64_t intermediate = 0;  // of an expert
  Matrix in, out;          // hidden -> width, width -> hidden; packed.data null: width = hidden
  Norm in_norm, out_norm;  // of what `in` gives; of each expert's output
  Needs in_needs, down_needs, out_needs;  // forms of the inputs of gate and up, down, `out`
  Expert shared;                          // runs for every row; up.packed.data null: none
  std::int64_t shared_intermediate = 0;
  const float* shared_router = nullptr;  // [hidden]: times sigmoid(x . it), or null

  bool pooled() const { return in.packed.data != nullptr; }
  bool has_shared() const { return shared.up.packed.data != nullptr; }
  ExpertsSizes sizes() const;
};

// Runs layers of experts; keeps its lists and buffers between calls, grown as needed.
class ExpertsRunner {
 public:
  // out[r] = the layer's output for row r of x, out [x.rows][padded hidden]. x has the forms that
  // router, `in`, shared expert and (not pooled) experts need; floats too where there is a
  // shared_router. Five jobs: router; gate and up; down; sums; and two more with a pooled width.
  // `tap`, if any, sees what the layer `layer` feeds to experts, shared expert and `out`.
  void run(Jobs& jobs, const KernelTable& kernels, const Experts& experts, const Rows& x,
           float* out, InputTap* tap = nullptr, std::int64_t layer = 0);

  // Working memory held now; what `rows` rows of such a layer take. Without the lists that grow
  // with the experts and not with the rows.
  std::int64_t bytes() const;
  static std::int64_t bytes_for(const ExpertsSizes& sizes, std::int64_t rows);

 private:
  struct Group {  // one expert and its rows: entries first .. first + count - 1
    std::int64_t expert, first, count;
  };
  void reserve(const ExpertsSizes& sizes, std::int64_t rows);
  void carve(const ExpertsSizes& sizes, std::int64_t rows, Carver* c);
  void route(Jobs& jobs, const KernelTable& kernels, const Experts& experts, const Rows& x);
  void group(const Experts& experts, std::int64_t rows);
  Rows gather(Jobs& jobs, const Rows& input);
  void gate_and_up(Jobs& jobs, const KernelTable& kernels, const Experts& experts, const Rows& x,
                   const Rows& input);
  void down(Jobs& jobs, const KernelTable& kernels, const Experts& experts);
  void sum(Jobs& jobs, const KernelTable& kernels, const Experts& experts, const Rows& to);
  void show(InputTap& tap, std::int64_t layer) const;
  void add_shared(Jobs& jobs, const KernelTable& kernels, const Experts& experts, const Rows& x,
                  float* out);

  // An entry is a row at one of its experts; entries lie by expert, then by row.
  std::vector<std::int32_t> experts_;        // [rows][chosen], ascending in a row
  std::vector<float> weights_;               // [rows][chosen]
  std::vector<std::int64_t> entry_of_;       // [rows][chosen]
  std::vector<std::int64_t> row_of_, next_;  // [entries]; [experts]: first entry not yet taken
  std::vector<Group> groups_;
  std::vector<Rows> inputs_;  // of the groups, then of the shared expert
  std::vector<GatedOutput> gated_;
  std::vector<LinearOutput> downs_;

  AlignedBuffer buffer_;
  float *logits_, *keys_;     // [rows][padded experts]
  float *narrow_, *results_;  // [rows] and [entries] [padded width]
  float* shared_out_;         // [rows][padded hidden]
  RowsBuffer pooled_, gathered_, inner_, shared_inner_, total_;
};

}  // namespace musespark

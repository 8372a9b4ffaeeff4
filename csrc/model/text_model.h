// The text tower: one forward path for every family, over rows of any number of sequences.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "cache/sequence.h"
#include "formats/weights.h"
#include "model/given_rows.h"
#include "model/spec.h"
#include "model/state_log.h"
#include "ops/tap.h"

namespace musespark {

// A tensor as it lies in the (mapped) file: matrices packed (formats/weights.h, 64-byte aligned),
// vectors f32 with rows = 1.
struct TensorView {
  WeightFormat format;
  std::int64_t rows, cols;
  const std::uint8_t* data;
  std::int64_t bytes;
};

class Adapter;       // model/adapter.h
struct LayerScores;  // model/attention_weights.h

// The last queries of a sequence, as attention takes them, in each layer without a window: by layer
// [KV heads][kRows][query heads of the group][Dp], row = position mod kRows; empty in the others.
struct QueryLog {
  static constexpr std::int64_t kRows = 8;
  std::vector<std::vector<float>> layers;
};

// Consecutive tokens of one sequence in a step: positions seq->length() .. + count - 1.
struct StepSpan {
  enum class Logits : std::uint8_t { none, last, all };
  Sequence* seq;               // at most once in a step
  const std::int32_t* tokens;  // [count], 0 <= token < vocab, or of a given row
  std::int64_t count;          // >= 1
  Logits logits;               // which positions' logits are wanted
  // The whole sequence, with this span, is within TextModel::original_context(): its keys and
  // queries take the ropes' short factors. The same in every step of a sequence.
  bool short_rope = false;
  // Made for this model, or null. The same in every step of a sequence.
  const Adapter* adapter = nullptr;
  QueryLog* log = nullptr;  // takes in the span's last queries, or null
  // The whole sequence's given rows, the same in every step of it; those of this span are there.
  // With ModelSpec::mutual_rows a span of them is cut by the sequence's beginning here alone.
  std::span<const GivenRows> given = {};
  StateLog* states = nullptr;  // takes in what its layers give, or null
};

// Asked on the calling thread before every layer and before the head; true discards the step.
struct StepControl {
  std::function<bool()> interrupted = {};  // empty: never
  InputTap* tap = nullptr;                 // sees the input of every matrix, or null
};

enum class StepOutcome : std::uint8_t { done, interrupted };

// The format of keys and values of each layer and KV head: f32 for all, or for none.
using KvChoice = std::vector<std::vector<KvFormat>>;
KvChoice same_for_all(const ModelSpec& spec, KvFormat format);

// The keys and values of a model's layers, head dimensions padded. Throws InvalidRequest for a
// choice of other layers or KV heads.
KvLayout kv_layout_of(const ModelSpec& spec, const KvChoice& kv);

class TextModel {
 public:
  // Checks that the tensors are exactly those of the spec (names in README of this folder).
  // Matrices are read in place: `tensors`' memory must outlive the model; vectors are copied.
  // Throws UnsupportedModel, naming the field, for what this version lacks; CorruptFile for a
  // missing, unknown, misshapen or misplaced tensor.
  TextModel(ModelSpec spec, const std::map<std::string, TensorView>& tensors, ThreadPool& pool,
            const KvChoice& kv);
  ~TextModel();
  TextModel(const TextModel&) = delete;
  TextModel& operator=(const TextModel&) = delete;

  const ModelSpec& spec() const;
  // Where sequences change from the ropes' short factors to the long ones; 0: they do not.
  std::int64_t original_context() const;
  // By layer.
  std::vector<LayerScores> layer_scores() const;
  // What the page pool of this model's sequences is made with.
  const KvLayout& kv_layout() const;
  // Bytes of activations held now, for the largest step so far (model/memory.h).
  std::int64_t work_bytes() const;
  // Bytes of scratch of each thread for steps of up to `rows` rows.
  std::int64_t scratch_bytes(std::int64_t rows) const;

  // Runs all spans as one batch and writes the logits asked for, one row of `vocab` floats each, in
  // the order of spans and positions. Row bits depend on the sequence's tokens alone.
  //
  // done: every sequence is longer by its span. interrupted, or an exception (InvalidRequest,
  // ContextOverflow beyond spec().max_context, MemoryBudgetExceeded): every sequence is as it was;
  // logits_out is unspecified. One call at a time.
  StepOutcome forward(std::span<const StepSpan> spans, const StepControl& control,
                      float* logits_out);

  // Rows of logits forward() writes for these spans.
  static std::int64_t logit_rows(std::span<const StepSpan> spans);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace musespark

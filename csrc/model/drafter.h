// A block drafter (DFlash, arXiv:2602.06036; transformers: MuseGlimmerAssistantModel): in one pass
// the next tokens of a text, all at once, from what layers of the model that writes it gave so far.
//
//     context rows     norm(fc(states of the target's layers, side by side)), one for each position
//                      of the text that the target has computed; the same rows are the input of
//                      every layer's keys and values
//     block rows       the target's embeddings, not normed, of the text's last token and of
//                      block - 1 masks; a row sees the context and every row of its block
//     logits           the target's head on the block's rows but the first: row i is of the token
//                      i positions after the last
//
// Context rows lie as keys and values in pages of the drafter's own, in f32. Nothing of a block
// stays. What is drafted decides no result, so nothing here is promised to the bit; it is the same
// on every instruction set all the same.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/thread_pool.h"
#include "cache/sequence.h"
#include "model/spec.h"
#include "model/text_model.h"

namespace musespark {

class Drafter {
 public:
  using Tensors = std::map<std::string, TensorView>;

  // `spec`: one with a block, and its tensors. `target`: the model it drafts for, with that one's
  // tensors, of which embedding and head are read. Memory of both must outlive the drafter. Throws
  // InvalidRequest naming both values where the two do not go together; else as TextModel.
  Drafter(ModelSpec spec, const Tensors& tensors, const ModelSpec& target,
          const Tensors& target_tensors, ThreadPool& pool);
  ~Drafter();
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;

  const ModelSpec& spec() const;
  // What the page pool of its contexts is made with.
  const KvLayout& kv_layout() const;
  // Of the target.
  std::int64_t vocab() const;
  // Floats of a position's states: target layers * hidden.
  std::int64_t state_width() const;
  // The most positions before a block that it sees; 0: all.
  std::int64_t reach() const;

  // Context rows of one text: slot s of `kv` is its position first + s.
  struct Context {
    Sequence& kv;
    std::int64_t first;
  };

  // Adds the text's next `rows` positions: states [rows][state_width()], at most kMostRows of them.
  // Throws MemoryBudgetExceeded; the context is then as it was.
  void extend(const Context& context, const float* states, std::int64_t rows);
  static constexpr std::int64_t kMostRows = 512;

  // Logits [count][vocab of the target] of the tokens after `last`, which stands behind the
  // context; 1 <= count < block. False where `interrupted` (asked before each layer) said so.
  // Throws MemoryBudgetExceeded.
  bool draft(const Context& context, std::int32_t last, std::int64_t count,
             const std::function<bool()>& interrupted, float* logits);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace musespark

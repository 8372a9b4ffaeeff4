// What some rows of a step get beside the model's weights: LoRA adapters and control vectors.
//
// To the product of an adapted matrix, its bias added, comes (x . A^T) . B^T (ops/low_rank.h); for
// gate and up before the activation. To the residual stream after a layer, its MLP joined, comes
// the layer's control vector: what later layers, the final norm and a StateLog read has it in. Rows
// without an adapter keep their bits.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "model/spec.h"
#include "model/text_model.h"
#include "ops/low_rank.h"

namespace musespark {

enum class AdapterTarget : std::uint8_t { q, k, v, attn_gate, o, gate, up, down };
inline constexpr std::size_t kAdapterTargets = 8;

// One adapter's matrices and vectors, in memory of its own. Immutable: any number of steps may read
// it.
class Adapter {
 public:
  // "layers.{i}.{target}.lora_a" [rank, inputs] and "layers.{i}.{target}.lora_b" [outputs, rank]
  // with the scale multiplied in, f32 or bf16; "layers.{i}.control" [1, hidden], f32; all copied.
  // `over`: an adapter whose matrices and vectors hold where this one has none, or null. Throws
  // CorruptFile for a tensor that does not fit the spec or lacks its partner, UnsupportedModel for
  // a target in a layer of experts or in an encoder, MemoryBudgetExceeded.
  Adapter(const ModelSpec& spec, const std::map<std::string, TensorView>& tensors,
          std::shared_ptr<const Adapter> over = nullptr);
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  // Null: the matrix has no addition.
  const LowRank* at(std::size_t layer, AdapterTarget target) const {
    const LowRank& found = layers_[layer][static_cast<std::size_t>(target)];
    if (found.a.packed.data) return &found;
    return over_ ? over_->at(layer, target) : nullptr;
  }
  // [hidden]. Null: nothing comes after the layer.
  const float* control(std::size_t layer) const {
    if (controls_[layer]) return controls_[layer];
    return over_ ? over_->control(layer) : nullptr;
  }
  // Without those of `over`.
  std::int64_t bytes() const { return bytes_; }

 private:
  Matrix copy(const std::string& name, const TensorView& from, std::int64_t rows,
              std::int64_t cols);
  const float* copy_control(const std::string& name, const TensorView& from, std::int64_t hidden);

  std::vector<std::array<LowRank, kAdapterTargets>> layers_;
  std::vector<const float*> controls_;  // by layer
  std::vector<AlignedBuffer> data_;
  std::int64_t bytes_ = 0;
  std::shared_ptr<const Adapter> over_;
};

// The adapted rows of the step under way, and room for what only they need.
class AdaptedRows {
 public:
  struct Product {
    AdapterTarget target;
    const Rows* in;  // with floats
    float* out;
    std::int64_t ldo;
  };

  // The rows of the spans, as the batch has them.
  void begin(std::span<const StepSpan> spans);
  // Only these rows (ascending) go on, moved to the front.
  void keep(std::span<const std::int64_t> rows);
  bool any(std::size_t layer, AdapterTarget target) const;
  // Adds to the products of one layer what their rows' adapters say.
  void add(Jobs& jobs, const KernelTable& kernels, std::size_t layer,
           std::span<const Product> products);
  // Adds the control vectors of one layer to the residual stream after it, and makes the steered
  // rows of out = next(residual) again; the others are there already.
  void steer(Jobs& jobs, const KernelTable& kernels, std::size_t layer, const Residual& residual,
             const Norm& next, const Rows& out) const;

  // Room for gate, up and the floats of hidden rows, [rows][padded cols] each.
  struct Inner {
    float *gate, *up, *hidden;
  };
  Inner inner(std::int64_t rows, std::int64_t cols);

 private:
  struct Range {
    const Adapter* adapter;
    std::int64_t first, count;
  };
  std::vector<Range> ranges_;
  std::vector<LowRankOutput> outputs_;
  LowRankRunner runner_;
  AlignedBuffer inner_;
};

}  // namespace musespark

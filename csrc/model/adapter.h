// LoRA adapters beside a model's matrices, and the rows of a step that have one.
//
// To the product of an adapted matrix, its bias added, comes (x . A^T) . B^T (ops/low_rank.h); for
// gate and up before the activation. Rows without an adapter keep their bits.
#pragma once

#include <array>
#include <cstdint>
#include <map>
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

// One adapter's matrices, in memory of its own. Immutable: any number of steps may read it.
class Adapter {
 public:
  // "layers.{i}.{target}.lora_a" [rank, inputs] and "layers.{i}.{target}.lora_b" [outputs, rank]
  // with the scale multiplied in, f32 or bf16, copied. Throws CorruptFile for a tensor that does
  // not fit the spec or lacks its partner, UnsupportedModel for a target in a layer of experts or
  // in an encoder, MemoryBudgetExceeded.
  Adapter(const ModelSpec& spec, const std::map<std::string, TensorView>& tensors);
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  // Null: the matrix has no addition.
  const LowRank* at(std::size_t layer, AdapterTarget target) const {
    const LowRank& found = layers_[layer][static_cast<std::size_t>(target)];
    return found.a.packed.data ? &found : nullptr;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  Matrix copy(const std::string& name, const TensorView& from, std::int64_t rows,
              std::int64_t cols);

  std::vector<std::array<LowRank, kAdapterTargets>> layers_;
  std::vector<AlignedBuffer> data_;
  std::int64_t bytes_ = 0;
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

#include "model/adapter.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/errors.h"
#include "formats/weights_codec.h"
#include "ops/rows_buffer.h"

namespace musespark {
namespace {

struct Shape {
  std::int64_t outputs, inputs;
};

constexpr std::array<const char*, kAdapterTargets> kNames = {"q", "k",    "v",  "attn_gate",
                                                             "o", "gate", "up", "down"};

// Outputs are 0 where the layer has no such matrix.
Shape shape_of(const ModelSpec& spec, const LayerSpec& layer, AdapterTarget target) {
  const AttentionSpec& a = layer.attention;
  const MlpSpec& mlp = layer.mlp;
  const std::int64_t inner = mlp.kind == MlpKind::dense ? mlp.intermediate : 0;
  switch (target) {
    case AdapterTarget::q:
      return {a.heads * a.head_dim, spec.hidden};
    case AdapterTarget::k:
    case AdapterTarget::v:
      return {a.kv_heads * a.head_dim, spec.hidden};
    case AdapterTarget::attn_gate:
      return {a.output_gate ? a.heads * a.head_dim : 0, spec.hidden};
    case AdapterTarget::o:
      return {spec.hidden, a.heads * a.head_dim};
    case AdapterTarget::gate:
      return {mlp.gated ? inner : 0, spec.hidden};
    case AdapterTarget::up:
      return {inner, spec.hidden};
    case AdapterTarget::down:
      return {inner > 0 ? spec.hidden : 0, inner};
  }
  return {0, 0};
}

std::int64_t item_bytes(WeightFormat format) { return format == WeightFormat::bf16 ? 2 : 4; }

}  // namespace

Matrix Adapter::copy(const std::string& name, const TensorView& from, std::int64_t rows,
                     std::int64_t cols) {
  const std::string where = "adapter tensor '" + name + "'";
  if (from.rows != rows || from.cols != cols || rows < 1) {
    throw CorruptFile(where + " is " + std::to_string(from.rows) + " x " +
                      std::to_string(from.cols) + "; " + std::to_string(rows) + " x " +
                      std::to_string(cols) + " is needed");
  }
  if (is_quantized(from.format)) {
    throw CorruptFile(where + " is " + weight_format_name(from.format) + ", not f32 or bf16");
  }
  const WeightLayout layout = weight_layout(from.format, rows, cols);
  if (from.bytes != layout.bytes) {
    throw CorruptFile(where + ": " + std::to_string(from.bytes) + " bytes; " +
                      std::to_string(layout.bytes) + " are needed");
  }
  // Row blocks without their padding columns, which float kernels do not read: of B, with a few
  // columns of 64, they would be most of it.
  const std::int64_t block = (cols + 1) / 2 * 2 * kRowBlock * item_bytes(from.format);
  AlignedBuffer& own = data_.emplace_back(static_cast<std::size_t>(layout.row_blocks * block));
  for (std::int64_t i = 0; i < layout.row_blocks; ++i) {
    std::memcpy(own.data() + i * block, from.data + i * layout.row_block_bytes,
                static_cast<std::size_t>(block));
  }
  bytes_ += layout.row_blocks * block;
  return {{own.as<std::uint8_t>(), block, rows, cols, from.format}, nullptr};
}

const float* Adapter::copy_control(const std::string& name, const TensorView& from,
                                   std::int64_t hidden) {
  if (from.format != WeightFormat::f32 || from.rows != 1 || from.cols != hidden) {
    throw CorruptFile("adapter tensor '" + name + "' is " + weight_format_name(from.format) + " " +
                      std::to_string(from.rows) + " x " + std::to_string(from.cols) + "; f32 1 x " +
                      std::to_string(hidden) + " is needed");
  }
  const auto bytes = static_cast<std::int64_t>(sizeof(float)) * hidden;
  if (from.bytes != bytes) {
    throw CorruptFile("adapter tensor '" + name + "': " + std::to_string(from.bytes) + " bytes; " +
                      std::to_string(bytes) + " are needed");
  }
  AlignedBuffer& own = data_.emplace_back(static_cast<std::size_t>(bytes));
  std::memcpy(own.data(), from.data, static_cast<std::size_t>(bytes));
  bytes_ += bytes;
  return own.as<float>();
}

Adapter::Adapter(const ModelSpec& spec, const std::map<std::string, TensorView>& tensors,
                 std::shared_ptr<const Adapter> over)
    : over_(std::move(over)) {
  if (spec.bidirectional) throw UnsupportedModel("adapter: encoders have none in this version");
  layers_.resize(spec.layers.size());
  controls_.resize(spec.layers.size());
  std::set<std::string> used;
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto control = tensors.find("layers." + std::to_string(i) + ".control");
    if (control != tensors.end()) {
      controls_[i] = copy_control(control->first, control->second, spec.hidden);
      used.insert(control->first);
    }
    for (std::size_t t = 0; t < kAdapterTargets; ++t) {
      const std::string name = "layers." + std::to_string(i) + "." + kNames[t] + ".lora_";
      const auto a = tensors.find(name + "a"), b = tensors.find(name + "b");
      if (a == tensors.end() && b == tensors.end()) continue;
      if (a == tensors.end() || b == tensors.end()) {
        throw CorruptFile("adapter tensor '" + name + (a == tensors.end() ? "a" : "b") +
                          "' is missing");
      }
      const Shape shape = shape_of(spec, spec.layers[i], static_cast<AdapterTarget>(t));
      if (shape.outputs == 0) {
        throw UnsupportedModel("adapter tensor '" + a->first + "': the layer has no such matrix");
      }
      const std::int64_t rank = a->second.rows;
      layers_[i][t] = {copy(a->first, a->second, rank, shape.inputs),
                       copy(b->first, b->second, shape.outputs, rank)};
      used.insert({a->first, b->first});
    }
  }
  for (const auto& [name, view] : tensors) {
    if (!used.contains(name)) {
      throw CorruptFile("adapter tensor '" + name + "' is not one of this model's");
    }
  }
}

void AdaptedRows::begin(std::span<const StepSpan> spans) {
  ranges_.clear();
  std::int64_t row = 0;
  for (const StepSpan& span : spans) {
    if (span.adapter && !ranges_.empty() && ranges_.back().adapter == span.adapter &&
        ranges_.back().first + ranges_.back().count == row) {
      ranges_.back().count += span.count;
    } else if (span.adapter) {
      ranges_.push_back({span.adapter, row, span.count});
    }
    row += span.count;
  }
}

void AdaptedRows::keep(std::span<const std::int64_t> rows) {
  for (Range& range : ranges_) {
    const auto begin = std::lower_bound(rows.begin(), rows.end(), range.first);
    const auto end = std::lower_bound(begin, rows.end(), range.first + range.count);
    range.first = begin - rows.begin();
    range.count = end - begin;
  }
  std::erase_if(ranges_, [](const Range& range) { return range.count == 0; });
}

bool AdaptedRows::any(std::size_t layer, AdapterTarget target) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [&](const Range& range) {
    return range.adapter->at(layer, target) != nullptr;
  });
}

void AdaptedRows::add(Jobs& jobs, const KernelTable& kernels, std::size_t layer,
                      std::span<const Product> products) {
  outputs_.clear();
  for (const Range& range : ranges_) {
    for (const Product& product : products) {
      const LowRank* matrices = range.adapter->at(layer, product.target);
      if (!matrices) continue;
      Rows in = product.in->slice(range.first, range.count);
      in.q64 = in.q256 = in.q1024 = {};
      outputs_.push_back({matrices, in, product.out + range.first * product.ldo, product.ldo});
    }
  }
  runner_.run(jobs, kernels, outputs_);
}

void AdaptedRows::steer(Jobs& jobs, const KernelTable& kernels, std::size_t layer,
                        const Residual& residual, const Norm& next, const Rows& out) const {
  for (const Range& range : ranges_) {
    const float* vector = range.adapter->control(layer);
    if (!vector) continue;
    const Residual rows{residual.x + range.first * residual.ldx, residual.ldx, range.count,
                        residual.cols};
    add_vector(jobs, kernels, vector, rows, next, out.slice(range.first, range.count));
  }
}

AdaptedRows::Inner AdaptedRows::inner(std::int64_t rows, std::int64_t cols) {
  Inner out{};
  carve_from(inner_, [&](Carver* carver) {
    out = {carver->floats(rows, cols), carver->floats(rows, cols), carver->floats(rows, cols)};
  });
  return out;
}

}  // namespace musespark

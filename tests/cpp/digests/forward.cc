// Whole steps of a small model: prefill in two pieces, then decoding. The tower runs at the best
// level this process may use (MUSESPARK_ISA), so that the digest, which is the same at each, is
// that of the whole forward path.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "base/thread_pool.h"
#include "cache/page_pool.h"
#include "cases.h"
#include "decode/sampler.h"
#include "formats/pack.h"
#include "formats/weights_codec.h"
#include "model/text_model.h"

namespace musespark::digests {
namespace {

constexpr std::int64_t kHidden = 96, kHeads = 4, kKvHeads = 2, kHeadDim = 24, kWidth = 160,
                       kVocab = 120;

// Packed matrices and vectors by name, and their memory.
class Tensors {
 public:
  explicit Tensors(std::uint64_t seed) : random_(seed) {}

  void vector(const std::string& name, std::int64_t n) {
    float* values = hold(4 * n)->as<float>();
    for (std::int64_t i = 0; i < n; ++i) values[i] = 1.0f + 0.1f * random_.normal();
    views[name] = {WeightFormat::f32, 1, n, reinterpret_cast<std::uint8_t*>(values), 4 * n};
  }

  void matrix(const std::string& name, WeightFormat format, std::int64_t rows, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    random_.fill(values, 0.15f);
    const StoredMatrix from{reinterpret_cast<const std::uint8_t*>(values.data()), StoredType::f32,
                            rows, cols, cols * 4};
    const WeightLayout layout = weight_layout(format, rows, cols);
    auto* to = hold(layout.bytes)->as<std::uint8_t>();
    pack_row_blocks(format, from, 0, layout.row_blocks, to);
    views[name] = {format, rows, cols, to, layout.bytes};
  }

  std::map<std::string, TensorView> views;

 private:
  Guarded* hold(std::int64_t bytes) {
    memory_.push_back(std::make_unique<Guarded>((bytes + 63) / 64 * 64));
    return memory_.back().get();
  }

  Random random_;
  std::vector<std::unique_ptr<Guarded>> memory_;
};

constexpr std::int64_t kExperts = 5;

ModelSpec small_model(bool experts) {
  ModelSpec spec;
  spec.vocab = kVocab;
  spec.hidden = kHidden;
  spec.max_context = 256;
  spec.final_norm = {NormKind::rms, 1e-5f};
  spec.logit_softcap = 30.0f;
  RopeSpec rope;
  rope.dim = kHeadDim;
  spec.ropes.push_back(rope);
  for (int i = 0; i < 2; ++i) {
    LayerSpec layer;
    layer.attn_norm = layer.mlp_norm = {NormKind::rms, 1e-5f};
    layer.attention.heads = kHeads;
    layer.attention.kv_heads = kKvHeads;
    layer.attention.head_dim = kHeadDim;
    layer.attention.window = i == 0 ? 40 : 0;
    layer.attention.rope = i == 0 ? 0 : -1;
    layer.attention.query_scale = 0.2f;
    layer.attention.output_gate = true;
    layer.mlp.intermediate = kWidth;
    if (experts && i == 1) {
      layer.mlp.kind = MlpKind::experts;
      layer.mlp.experts = kExperts;
      layer.mlp.experts_per_token = 2;
      layer.mlp.router = RouterKind::sigmoid;
      layer.mlp.router_renormalize = true;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

void fill_tensors(const std::vector<WeightFormat>& formats, bool experts, Tensors& to) {
  std::size_t next = 0;
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    to.matrix(name, formats[next++ % formats.size()], rows, cols);
  };
  matrix("embed", kVocab, kHidden);
  matrix("head", kVocab, kHidden);
  to.vector("final_norm", kHidden);
  for (int i = 0; i < 2; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    to.vector(layer + "attn_norm", kHidden);
    to.vector(layer + "mlp_norm", kHidden);
    matrix(layer + "q", kHeads * kHeadDim, kHidden);
    matrix(layer + "k", kKvHeads * kHeadDim, kHidden);
    matrix(layer + "v", kKvHeads * kHeadDim, kHidden);
    matrix(layer + "attn_gate", kHeads * kHeadDim, kHidden);
    matrix(layer + "o", kHidden, kHeads * kHeadDim);
    const auto mlp = [&](const std::string& at) {
      matrix(at + "gate", kWidth, kHidden);
      matrix(at + "up", kWidth, kHidden);
      matrix(at + "down", kHidden, kWidth);
    };
    if (!experts || i == 0) {
      mlp(layer);
      continue;
    }
    to.matrix(layer + "router", WeightFormat::f32, kExperts, kHidden);
    for (int e = 0; e < kExperts; ++e) mlp(layer + "experts." + std::to_string(e) + ".");
  }
}

void forward_case(const std::string& name, const std::vector<WeightFormat>& formats, KvFormat kv,
                  int threads, bool experts = false) {
  Tensors tensors(11);
  fill_tensors(formats, experts, tensors);
  ThreadPool pool(threads);
  const ModelSpec spec = small_model(experts);
  TextModel model(spec, tensors.views, pool, same_for_all(spec, kv));
  PagePool pages(model.kv_layout(), std::int64_t{1} << 30);
  Sequence sequence(pages);

  Bytes bytes;
  std::vector<float> logits;
  const auto step = [&](const std::vector<std::int32_t>& tokens) {
    const StepSpan span{&sequence, tokens.data(), static_cast<std::int64_t>(tokens.size()),
                        StepSpan::Logits::last};
    logits.assign(kVocab, 0.0f);
    model.forward({&span, 1}, {}, logits.data());
    sequence.accept(sequence.length());
    append(bytes, logits.data(), kVocab);
  };
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < 130; ++i) prompt.push_back(i * 37 % static_cast<int>(kVocab));
  step({prompt.begin(), prompt.begin() + 71});
  step({prompt.begin() + 71, prompt.end()});
  for (int i = 0; i < 3; ++i) {
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    step({static_cast<std::int32_t>(best)});
  }
  report("forward/" + name, bytes);
}

// Tokens and log-probabilities drawn from random rows.
void sampler_case() {
  Random random(12);
  std::vector<float> row(kVocab);
  SamplerScratch scratch;
  Bytes bytes;
  for (std::uint64_t i = 0; i < 200; ++i) {
    random.fill(row, 3.0f);
    SamplingParams params;
    params.temperature = i % 4 == 0 ? 0.0f : 0.3f * static_cast<float>(i % 5 + 1);
    params.top_k = static_cast<std::int64_t>(i % 3 * 20);
    params.top_p = i % 2 ? 0.9 : 1.0;
    params.min_p = i % 7 ? 0.0f : 0.05f;
    params.seed = 5;
    params.logprobs = 3;
    const SampledToken token = Sampler(params, kVocab).sample(row.data(), i, {}, scratch);
    append(bytes, &token.token, 1);
    append(bytes, &token.logprob, 1);
    for (const TokenLogprob& top : token.top) append(bytes, &top.logprob, 1);
  }
  report("forward/sampler", bytes);
}

}  // namespace

void forward_digests() {
  using enum WeightFormat;
  forward_case("q4", {q6, q4, q4, q8}, KvFormat::kv8, 1);
  forward_case("q8", {q8}, KvFormat::kv8, 3);
  forward_case("exact", {q8g32h, q4g32h, iq4g32h, mxfp4}, KvFormat::kv8, 1);
  forward_case("experts", {q4, q8}, KvFormat::kv8, 2, true);
  forward_case("f32", {f32, bf16}, KvFormat::f32, 2);
  forward_case("kv8v4", {q8}, KvFormat::kv8v4, 3);
  forward_case("kv4", {q4, q6}, KvFormat::kv4, 1);
  sampler_case();
}

}  // namespace musespark::digests

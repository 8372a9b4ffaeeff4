// From a row of logits to a token. The result is a function of the row, the parameters, the tokens
// so far and (seed, stream, position); the plain twin is python/musespark/reference/sampler.py.
//
// Order of the steps, that of transformers (vLLM's differs in min-p only; llama.cpp applies the
// temperature last, so the same top_p keeps other tokens there):
//
//   1. log-probabilities for the caller: log-softmax of the row as the model gave it, before all
//   that
//      follows (what vLLM and llama.cpp report)
//   2. allowed ids, those that a constraint allows (decode/constraint.h), those that a thought may
//      have (decode/thinking.h), and ids blocked until min_new_tokens: what is not in all of them
//      becomes -inf
//   3. logit bias, added, and what the end of a thought is raised by
//   4. repetition penalty r over prompt and completion: l > 0 ? l / r : l * r     (Keskar et al.
//   2019)
//   5. presence and frequency penalty over the completion alone: l - (presence + frequency * count)
//   6. temperature 0: the largest logit, ties to the lower id. Else z = (l - max) / temperature and
//      e = exp(z), but 0 where z <= -80 (1.8e-35 of the largest)
//   7. top-k: the k largest, ties to the lower id
//   8. top-p: the shortest prefix, largest first, whose share of what step 7 left reaches p
//   9. min-p: those with e >= min_p * largest e. At least one token always stays
//  10. the draw: u = random_uniform64(seed, stream, position); the first token, largest first, at
//      which the running sum of e passes u * sum
//
// Logits and e are float32, sums are double; 3 to 5 are single float operations in this order.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "decode/candidates.h"
#include "decode/signals.h"

namespace musespark {

struct SamplingParams {
  float temperature = 0.0f;         // >= 0; 0 is greedy
  std::int64_t top_k = 0;           // 0: off
  double top_p = 1.0;               // (0, 1]; 1: off
  float min_p = 0.0f;               // [0, 1]; 0: off
  float repetition_penalty = 1.0f;  // > 0; 1: off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
  std::int64_t logprobs =
      0;  // how many of the most likely to report besides the chosen; 0: nothing
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // each id once; finite or -inf
  std::vector<std::int32_t> allowed_ids;                   // empty: all
};

// Throws InvalidRequest naming field, value and range: any id outside [0, vocab), an id twice in
// logit_bias, a number out of its range or not finite.
void check_sampling_params(const SamplingParams& params, std::int64_t vocab);

// A row the model computed holds NaN or an infinity, or no id is left to choose from.
class BadLogits : public Error {
 public:
  using Error::Error;
};

struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

struct SampledToken {
  std::int32_t token = -1;
  float logprob = 0;              // of the model's own distribution; only where logprobs > 0
  std::vector<TokenLogprob> top;  // most likely first, ties by id
  std::optional<TokenSignals> signals{};  // of a thought's token, where they are taken
};

// What may be chosen of one row, beside the parameters.
struct Choice {
  std::span<const std::uint64_t> allowed{};  // a bit for each id that can be; empty: all
  std::span<const std::uint64_t> also{};     // more such bits
  std::span<const std::int32_t> blocked{};   // ids that cannot be
  std::span<const std::int32_t> barred{};    // more of them
  std::int32_t raised = -1;                  // to this logit `by` is added
  float by = 0.0f;
};

// Memory a worker reuses between rows.
struct SamplerScratch {
  std::vector<float> logits;   // [vocab] the row after steps 2 to 5
  std::vector<float> scaled;   // z
  std::vector<float> weights;  // e
  CandidatesMemory candidates;
};

// The sampler of one sequence: parameters, and what the penalties need to know of its tokens.
class Sampler {
 public:
  // `params` must have passed check_sampling_params.
  Sampler(SamplingParams params, std::int64_t vocab);

  const SamplingParams& params() const { return params_; }
  // Whether what sample() gives depends on the tokens so far.
  bool has_penalties() const;

  // Tokens as they become part of the sequence, each once, in order. Ids in [0, vocab).
  void add_prompt(std::span<const std::int32_t> tokens);
  void add_completion(std::int32_t token);
  // As if `tokens` alone had become part of the sequence, the first `prompt` of them as its prompt.
  void restart(std::span<const std::int32_t> tokens, std::int64_t prompt);

  // The token at absolute position `position` (prompt tokens count). `row` is [vocab]. Does not
  // change the sampler. Throws BadLogits. Expects FloatEnv's environment.
  SampledToken sample(const float* row, std::uint64_t position, const Choice& choice,
                      SamplerScratch& scratch) const;
  // The token of sample() alone.
  std::int32_t pick(const float* row, std::uint64_t position, const Choice& choice,
                    SamplerScratch& scratch) const;
  // The likeliest token, with its log-probability.
  SampledToken likeliest(const float* row, SamplerScratch& scratch) const;
  // A token that is known, with what sample() reports beside one.
  SampledToken forced(const float* row, std::int32_t token, SamplerScratch& scratch) const;

 private:
  void mark_seen(std::int32_t token);
  // Steps 2 to 5 into `out`.
  void process(const float* row, const Choice& choice, std::vector<float>& out) const;
  void report(const float* row, SampledToken& token, SamplerScratch& scratch) const;
  std::int32_t draw(const float* logits, float max, std::uint64_t position,
                    SamplerScratch& scratch) const;

  SamplingParams params_;
  std::int64_t vocab_;
  std::vector<std::uint64_t> allowed_;  // bitmap [vocab], empty: all
  std::vector<std::int32_t>
      completion_count_;                // [vocab]; this and the next two only with penalties
  std::vector<std::uint8_t> seen_;      // [vocab]
  std::vector<std::int32_t> seen_ids_;  // each once
};

// The log-probability of `token` under softmax(row), row [vocab]; throws BadLogits as above.
float token_logprob(const float* row, std::int64_t vocab, std::int32_t token,
                    SamplerScratch& scratch);

}  // namespace musespark

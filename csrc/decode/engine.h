// The engine: sequences in, tokens out. One step takes rows from any number of sequences (decode
// rows and prefill chunks), runs them as one batch through the model and samples.
//
// What a request returns depends on its tokens, parameters and seed alone: not on the other
// requests, on how prefill was cut, on preemption, on reuse of a prefix or on the threads.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "cache/saved_pages.h"
#include "decode/constraint.h"
#include "decode/sampler.h"
#include "decode/stop.h"
#include "decode/thinking.h"
#include "decode/thoughts.h"
#include "decode/trial.h"
#include "model/adapter.h"
#include "model/attention_weights.h"
#include "model/text_model.h"

namespace musespark {

// What the caller wants of the logits themselves. Anything but `none` means: nothing is sampled.
enum class LogitsMode : std::uint32_t {
  none,
  last,  // one row, after the last prompt token
  all,   // a row for each prompt token, in pieces of at most kLogitsRows rows, in order
  // The log-probability of each prompt token but the first, given those before it; where
  // sampling.logprobs asks for the likeliest too, these tokens with them, as TokensEvents.
  score,
  attention,  // none: where the last tokens look, model/attention_weights.h
  // none: the residual stream after each layer but the last, which not every row goes through, of
  // each prompt token, in pieces as those of `all`
  states,
};
inline constexpr std::int64_t kLogitsRows = 64;

// Tokens at a prompt's end from any page of which another prompt can go on, through windows too: it
// may differ in its last message.
inline constexpr std::int64_t kLastMessage = 256;

// Given out in ascending order, never twice.
using AdapterId = std::int64_t;

struct RequestParams {
  SamplingParams sampling;
  std::optional<std::int64_t> max_new_tokens;  // >= 0; none: what the context leaves
  std::int64_t min_new_tokens = 0;
  std::vector<std::int32_t> stop_ids;
  LogitsMode logits = LogitsMode::none;
  std::vector<KeySpan> look_at;  // attention: of these tokens the weights are wanted
  std::int64_t logits_from =
      0;  // all, score, states: no row before this token, which may be known then
  std::optional<double> deadline_s;  // from now, >= 0
  std::int64_t draft_tokens = 0;     // of a draft at most (decode/speculation.h); 0: none
  bool draft_eagerly = false;        // the drafter's where there is one, whatever they cost
  bool retain = false;               // keep the pages after the end, until release()
  std::optional<AdapterId> adapter;  // none: the model alone
  ThoughtParams thoughts;
  ThinkingParams thinking;
  TrialParams trials;
  // >= 1; ThoughtTracker::said() of the completion; none: as max_new_tokens leaves them.
  std::optional<std::int64_t> max_answer_tokens;
  // Rows that stand in the prompt in place of looked-up embeddings; their tokens are negative.
  // Those that are null are asked for when they are needed: keys and values may be known already.
  std::vector<GivenRows> given;
  // What may be written; null: anything. Of this request alone: it counts the tokens. Given up at
  // the end, in the thread of run_until and without a lock held.
  std::shared_ptr<TokenConstraint> constraint;
};

struct EngineOptions {
  std::int64_t context = 0;          // tokens a sequence may have, prompt and completion
  std::int64_t prefill_chunk = 512;  // prompt rows of one step, all sequences together
  std::int64_t max_batch = 64;       // sequences that run at once
  bool prefix_cache = true;          // keep what prompts begin with
  // Of pages that nobody but the prefixes kept holds; they are within the pool's budget in any
  // case.
  std::int64_t prefix_bytes = std::numeric_limits<std::int64_t>::max();
};

using RequestId = std::int64_t;

struct RequestStats {
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t thought_tokens = 0;               // of the completion, inside thoughts
  ThoughtStop thought_stop = ThoughtStop::none;  // of the last that ended, where they are watched
  std::int64_t thought_bytes = 0;                // of whole pages inside its thoughts, at its end
  std::int64_t drafted_tokens = 0, accepted_tokens = 0;          // of drafts
  std::int64_t drafter_passes = 0, drafter_accepted_tokens = 0;  // of these, the drafter's
  std::int64_t trial_tokens = 0;  // rows computed for trials, and not its own
  std::vector<TrialResult> trials;
  // What became of thoughts, in layers without a window; the prompt's are demoted too.
  std::int64_t demoted_pages = 0, evictions = 0, evicted_tokens = 0, freed_bytes = 0;
  double queue_s = 0;        // submit to admission
  double prefill_s = 0;      // admission to the first token (or the end of the prompt)
  double decode_s = 0;       // first token to the end
  double first_token_s = 0;  // submit to the first token; 0 if there was none
};

// Tokens of one sequence since the last report.
struct TokensEvent {
  RequestId id;
  std::vector<SampledToken> tokens;
};
struct LogitsEvent {
  RequestId id;
  std::int64_t first;  // position of the first row
  // LogitsMode::score: cols = 1. attention: rows of all layers without a window, one after the
  // other; first = how many layers. states: cols = (layers - 1) * hidden.
  std::int64_t rows, cols;
  std::vector<float> values;
};
// GivenRows `index` of the request are needed: provide_rows. Its other rows go on meanwhile.
struct RowsWantedEvent {
  RequestId id;
  std::int64_t index;
};
// What ended a sequence with FinishReason::error, as a class of base/errors.h.
enum class ErrorKind : std::uint32_t { none, bad_logits, memory, constraint, other };
struct FinishedEvent {
  RequestId id;
  FinishReason reason;
  ErrorKind kind = ErrorKind::none;
  std::string error;  // empty but for FinishReason::error
  RequestStats stats;
};

// A retained sequence outside the engine; the bytes of its pages go one by one.
struct SavedSequence {
  std::vector<std::int32_t> tokens;  // those of `lengths.length`
  SavedLengths lengths;              // length 0: it has lost its pages, or never had any
  bool short_rope = false;           // made with the ropes' short factors
  std::optional<AdapterId> adapter;
};

using Event = std::variant<TokensEvent, LogitsEvent, RowsWantedEvent, FinishedEvent>;

struct EngineStats {
  std::int64_t waiting = 0, running = 0, retained = 0;
  std::int64_t steps = 0, rows = 0, preemptions = 0, redone_steps = 0;
  std::int64_t kv_bytes_used = 0, kv_bytes_limit = 0;  // used: by sequences
  std::int64_t kv_bytes_allocated = 0;  // of sequences and prefixes, and memory kept for reuse
  std::int64_t prefix_bytes =
      0;  // of keys and values that no sequence uses, kept for prompts to come
  std::int64_t pages = 0, open_pages = 0;        // of keys and values, prefixes kept included
  std::int64_t adapters = 0, adapter_bytes = 0;  // not counting those removed
  std::int64_t drafter_tokens = 0;               // of a text, that the drafter knows
};

class DraftSource;  // draft_source.h

// Thread-safe but for run_until, which one thread at a time may call.
class Engine {
 public:
  // `drafter`: makes drafts (draft_source.h), or null; it must outlive the engine.
  Engine(TextModel& model, PagePool& pool, ThreadPool& threads, EngineOptions options,
         DraftSource* drafter = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Takes an adapter in; its tensors are copied. `over`: one that it is laid over, which may be
  // removed before it. Throws as Adapter does, and InvalidRequest for an `over` that is none.
  AdapterId add_adapter(const std::map<std::string, TensorView>& tensors,
                        std::optional<AdapterId> over = std::nullopt);

  // No later request may name it. Requests under way run on with it, and so do retained sequences;
  // its memory is given back with the last of them. Throws InvalidRequest for an id that is none.
  void remove_adapter(AdapterId id);

  // Queues a request. `base`: a retained sequence; the pages of the longest common prefix are
  // shared, and the base stays as it is; where its adapter is another one, nothing is shared.
  // Throws InvalidRequest (naming the field), ContextOverflow(needed, limit), MemoryBudgetExceeded
  // where the request alone could never fit.
  RequestId submit(std::vector<std::int32_t> tokens, RequestParams params,
                   std::optional<RequestId> base = std::nullopt);

  // The rows (and taps) that a RowsWantedEvent asked for, as GivenRows has them; `count` says of
  // how many tokens they are. No effect on a sequence that has ended. Throws InvalidRequest for
  // what the request does not have.
  void provide_rows(RequestId id, std::int64_t index, std::int64_t count, SharedFloats rows,
                    std::vector<SharedFloats> taps);

  // Ends a waiting or running sequence within one layer; no effect on one that has ended.
  // Throws InvalidRequest for an id never given out.
  void cancel(RequestId id);
  // Ends every waiting and running sequence with `cancelled`.
  void cancel_all();

  // A retained sequence's twin: same tokens, pages shared until written. Both are released
  // separately.
  RequestId fork(RequestId id);
  // Gives a retained sequence up. Before its end: it will not be retained. Throws InvalidRequest
  // for an id that is neither.
  void release(RequestId id);

  // --- retained sequences to and from files ---
  //
  // begin_*, wait_transfer until it is true, read_page or write_page for each page, end_transfer.
  // Pages stay with the step's thread: beginning waits for its next plan, so someone must be in
  // run_until. A sequence under way may lose its pages to running requests as any retained one.

  // InvalidRequest for an id that is not retained, or whose pages are under way already.
  void begin_save(RequestId id);
  // Makes a retained sequence; to be released where a later call fails. Throws InvalidRequest,
  // ContextOverflow, and MemoryBudgetExceeded where it could never fit.
  RequestId begin_restore(SavedSequence saved);
  // Makes a retained sequence of what the engine keeps of past prompts: the longest that `tokens`
  // begin with, at most `most` of them. Its pages are under way as after begin_save; saved() says
  // how many tokens it has, none where nothing is known or others leave no room. To be released.
  // `tokens` are a whole prompt: its length decides which ropes it was made with.
  RequestId begin_export(std::vector<std::int32_t> tokens, std::int64_t most,
                         std::optional<AdapterId> adapter);
  // Whether the pages can be reached, waiting at most `seconds` for it. Throws MemoryBudgetExceeded
  // where running requests leave no room for a sequence to be restored.
  bool wait_transfer(RequestId id, double seconds);
  // What is being transferred, its lengths 0 where it has no pages.
  SavedSequence saved(RequestId id);
  // Copies page `index` of saved_pages(lengths) out or in, all its bytes; rows that the sequence
  // does not have read as zero. False: the sequence has lost its pages meanwhile.
  bool read_page(RequestId id, std::int64_t index, std::span<std::uint8_t> bytes);
  bool write_page(RequestId id, std::int64_t index, std::span<const std::uint8_t> bytes);
  void end_transfer(RequestId id);
  // The pages of a sequence of these lengths. Throws InvalidRequest.
  std::vector<SavedPage> page_list(SavedLengths lengths) const;

  // Steps until `max_seconds` have passed, a sequence wrote its first token, ended or gave logits,
  // or nothing is left to do. Appends what happened to `events` in order; where it returns early,
  // tokens of those that go on follow within `max_seconds` of the last time: many that begin or end
  // would else cut those of all others into as many pieces. Throws only for faults that end the
  // engine; every later call throws the same.
  void run_until(double max_seconds, std::vector<Event>& events);

  // Whether run_until has anything to do.
  bool has_work() const;
  // Whether all that there is to do waits for rows to be provided (or for a deadline).
  bool waits_for_rows() const;
  EngineStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace musespark

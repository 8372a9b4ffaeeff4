// One sequence inside the engine.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "cache/prefix_tree.h"
#include "cache/saved_pages.h"
#include "decode/engine.h"
#include "decode/speculation.h"
#include "decode/trial.h"

namespace musespark {

using Clock = std::chrono::steady_clock;

enum class Phase : std::uint8_t { waiting, running, retained };

// A retained sequence's pages on their way to or from a file (transfer.cc).
struct Transfer {
  SavedLengths lengths;
  bool restores = false;     // into the pool
  std::int64_t exports = 0;  // at most so many tokens of what is kept; 0: of the sequence itself
  bool settled = false;
  std::exception_ptr error;  // why it could not begin
  std::vector<SavedPage> pages;
  std::vector<std::uint8_t*> at;  // the pages' bytes; none once the sequence has lost them
};

struct Entry {
  Entry(std::vector<std::int32_t> prompt, RequestParams request, std::int64_t vocab,
        std::int64_t completion_limit)
      : tokens(std::move(prompt)),
        params(std::move(request)),
        sampler(params.sampling, vocab),
        stop(params.stop_ids, params.min_new_tokens, completion_limit) {
    stats.prompt_tokens = static_cast<std::int64_t>(tokens.size());
    sampler.add_prompt(tokens);
    thoughts.see(params.thoughts, tokens);
    given_said = thoughts.said();
  }

  std::int64_t length() const { return kv ? kv->length() : 0; }
  std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  // Tokens whose keys and values are still to be computed. One: a decode row. More: prefill, or
  // what a preemption threw away.
  std::int64_t pending() const { return size() - length(); }
  // Whether what comes after the prompt is nothing that another request goes on from.
  bool ends_with_prompt() const { return params.thoughts.cache != ThoughtCache::keep || evicts(); }
  bool evicts() const { return params.thoughts.most_tokens > 0; }
  bool demotes() const { return params.thoughts.cache == ThoughtCache::demote; }
  bool samples() const { return params.logits == LogitsMode::none; }
  // Whether each row from params.logits_from on is wanted.
  bool wants_rows() const {
    return params.logits == LogitsMode::all || params.logits == LogitsMode::score || gives_states();
  }
  bool gives_states() const { return params.logits == LogitsMode::states; }
  bool looks() const { return params.logits == LogitsMode::attention; }
  std::int64_t looking_rows() const { return std::min(QueryLog::kRows, size()); }
  // Tokens whose keys and values may come from elsewhere.
  std::int64_t most_shared() const {
    if (looks()) return size() - looking_rows();
    return wants_rows() ? params.logits_from : size() - 1;
  }

  // Tokens that the completion may still have outside thoughts and their frame.
  std::int64_t answer_left() const {
    if (!params.max_answer_tokens) return std::numeric_limits<std::int64_t>::max();
    return *params.max_answer_tokens - (thoughts.said() - given_said);
  }

  // Whether a token ends the thought that is under way.
  bool ends_thought(std::int32_t token) const {
    return std::ranges::find(params.thoughts.closes, token) != params.thoughts.closes.end();
  }

  PrefixKey prefix_key() const { return {params.adapter.value_or(-1), short_rope}; }
  void mark(std::int64_t length) {
    if (std::ranges::find(marks, length) == marks.end()) marks.push_back(length);
  }
  void drop_pages() {
    most_evicted = std::max(most_evicted, stats.evicted_tokens);
    stats.demoted_pages = stats.evictions = stats.evicted_tokens = stats.freed_bytes = 0;
    thought_slots.clear();
    evicting = -1;
    kv.reset();
    prompt_kv.reset();
    shared.reset();
    if (transfer) transfer->at.clear();
  }

  RequestId id = -1;
  Phase phase = Phase::waiting;
  std::vector<std::int32_t> tokens;  // prompt, then completion
  RequestParams params;
  std::vector<bool> asked = std::vector<bool>(params.given.size());  // of the given rows
  std::shared_ptr<const Adapter> adapter;  // what made the keys and values in `kv`, or null
  Sampler sampler;
  StopRules stop;
  std::int64_t constrained = 0;  // tokens of the completion that the constraint knows
  ThoughtTracker thoughts;
  std::int64_t given_said = 0;  // thoughts.said() of the prompt
  ThinkingControl thinking;
  // trials.cc: the one under way; a sampled token that waits for it; where the last one began; how
  // many in a row gave the same answer.
  std::optional<Trial> trial;
  std::optional<SampledToken> held;
  TrialRow trial_row;  // where one begins with the sequence's last row
  std::int64_t tried_at = 0, agreed = 0;
  // thought_pages.cc: of thoughts that have ended, the slots first .. second - 1 of `kv`; and of
  // the one whose rows were evicted last, its index and its first slot.
  std::vector<std::pair<std::int64_t, std::int64_t>> thought_slots;
  std::int64_t evicting = -1, evicting_from = 0;
  std::int64_t most_evicted = 0;    // before the sequence was preempted
  std::vector<std::int32_t> draft;  // of the step under way: the last token, what may follow
  DraftLength drafting;
  QueryLog log;
  StateLog states;  // of the step under way, where they are asked for
  std::optional<Sequence> kv;
  PrefixTree::Pin shared;  // what `kv` began with, held in the tree
  // Lengths, whole pages, from which others will go on (PrefixTree::insert).
  std::vector<std::int64_t> marks;
  // The sequence this one last waited for, and the tokens they share
  // (Engine::Impl::follows_running).
  RequestId follows = -1;
  std::int64_t shares = 0;
  // At the prompt's end, of a sequence to be retained: the pages that a continuation from there
  // sees through a window are gone from `kv` once the completion is longer than it, and so are the
  // open rows of the page that the prompt ends in.
  std::optional<Sequence> prompt_kv;

  // The keys and values in `kv` were made with the ropes' short factors.
  bool short_rope = false;

  Entry* source = nullptr;  // base of a waiting request, or what a fork is made from
  int pins = 0;             // entries that have this one as their source
  bool released = false;
  std::optional<Transfer> transfer;
  std::atomic<bool> cancelled{false};

  std::int64_t reserved_tokens = 0, reserved_bytes = 0;
  std::int64_t last_used = 0;  // step in which it last got prefill rows; or was kept or reused
  std::vector<SampledToken> unreported;

  RequestStats stats;
  std::optional<Clock::time_point> deadline, thinking_deadline;
  Clock::time_point submitted, admitted, first_token;
};

}  // namespace musespark

// The engine's inside. engine.cc: requests and their ends; schedule.cc: who may run and in whose
// memory; rows.cc: with which rows; given.cc: rows in place of embeddings; step.cc: one forward
// pass and what follows from it; speculation.cc: drafts; thought_pages.cc: what becomes of
// thoughts; trials.cc: trial answers; transfer.cc: pages to and from files.
//
// Locking: `mutex` guards everything that submit, cancel, release, fork and stats see. The step
// holds it while it plans and while it books results, not while the model runs or pages are made
// anew. Pages are touched by the step's thread only: what other threads ask for (forks, releases,
// transfers) waits for its next plan. Who transfers pages then copies them under `pages_mutex`.
#pragma once

#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <unordered_set>

#include "decode/draft_source.h"
#include "decode/engine.h"
#include "decode/entry.h"
#include "decode/pace.h"

namespace musespark {

// Throws InvalidRequest for no tokens, or one that is not of the vocabulary nor, where there may be
// given rows, negative.
void check_tokens(const std::vector<std::int32_t>& tokens, std::int64_t vocab, bool given);

// Lets other threads in while pages are read or made anew: they touch no running sequence's.
class Unlocked {
 public:
  explicit Unlocked(std::mutex& mutex) : mutex_(mutex) { mutex_.unlock(); }
  ~Unlocked() { mutex_.lock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  std::mutex& mutex_;
};

// The weight of PrefillPace, from the shape.
double key_weight(const ModelSpec& spec);

struct Engine::Impl {
  struct Job {  // one row to sample from, or to score a known token with
    Entry* entry;
    const float* row;
    std::int32_t known = -1;                   // -1: sample
    std::span<const std::uint64_t> allowed{};  // by the constraint; empty: all
    bool ends = false;                         // by the constraint, without a token
    bool trial = false;                        // of the entry's trial
    SampledToken token{};
    SampledToken own{};  // of a trial: what its entry would sample; -1: not known
    ErrorKind kind = ErrorKind::none;
    std::string error{};  // empty: none
  };

  Impl(TextModel& model, PagePool& pool, ThreadPool& threads, EngineOptions options,
       DraftSource* drafter);

  // engine.cc
  RequestId submit(std::vector<std::int32_t> tokens, RequestParams params,
                   std::optional<RequestId> base);
  AdapterId add_adapter(const std::map<std::string, TensorView>& tensors,
                        std::optional<AdapterId> over);
  void remove_adapter(AdapterId id);
  const std::shared_ptr<const Adapter>& adapter_of(AdapterId id, const char* field) const;
  RequestId fork(RequestId id);
  void release(RequestId id);
  void cancel(RequestId id);
  void run_until(double max_seconds, std::vector<Event>& events);
  Entry& retained(RequestId id, const char* field);
  void check_given_out(RequestId id) const;
  std::int64_t completion_limit(std::int64_t prompt, const RequestParams& params) const;
  void finish(Entry& entry, FinishReason reason, ErrorKind kind = ErrorKind::none,
              std::string error = {});
  void report_tokens(Entry& entry);

  // transfer.cc
  void begin_save(RequestId id);
  RequestId begin_restore(SavedSequence saved);
  RequestId begin_export(std::vector<std::int32_t> tokens, std::int64_t most,
                         std::optional<AdapterId> adapter);
  RequestId begin_transfer(std::unique_ptr<Entry> entry);
  bool wait_transfer(RequestId id, double seconds);
  SavedSequence saved(RequestId id);
  bool read_page(RequestId id, std::int64_t index, std::span<std::uint8_t> bytes);
  bool write_page(RequestId id, std::int64_t index, std::span<const std::uint8_t> bytes);
  void end_transfer(RequestId id);
  void settle_transfer(Entry& entry);
  void place_restored(Entry& entry);
  void attach_exported(Entry& entry);
  Transfer& transfer_of(RequestId id);
  std::uint8_t* page_bytes(RequestId id, std::int64_t index, std::size_t bytes, SavedPage* page,
                           std::shared_lock<std::shared_mutex>* hold);
  std::vector<SavedPage> page_list(SavedLengths lengths) const;
  std::int64_t restored_bytes(SavedLengths lengths) const;

  // schedule.cc
  void plan(Clock::time_point now);
  void settle_requests();
  void end_cancelled(Clock::time_point now);
  void grow_reservations();
  bool keeps_prompt_end(const RequestParams& params) const;
  std::int64_t prompt_kv_bytes(std::int64_t prompt) const;
  std::int64_t bytes_beside(std::int64_t prompt, const RequestParams& params) const;
  std::int64_t bytes_for(const Entry& entry, std::int64_t tokens) const;
  bool reserve(Entry& entry, std::int64_t tokens);
  std::unordered_set<PageId> pages_written_next() const;
  std::int64_t retained_page_bytes() const;
  bool make_room(std::int64_t bytes);
  void preempt(Entry& entry);
  void requeue(Entry& entry);
  void requeue_outgrown();
  void admit(Clock::time_point now);
  bool start(Entry& entry, Clock::time_point now);
  void attach_base(Entry& entry);
  void attach_known(Entry& entry);
  bool follows_running(Entry& entry);
  bool fits(const Entry& entry, std::int64_t tokens) const;
  void unpin_source(Entry& entry);
  bool wants_short_rope(const Entry& entry) const;
  void set_reserved(Entry& entry, std::int64_t tokens, std::int64_t bytes);

  // rows.cc
  void choose_rows();
  double keys_before(std::int64_t position) const;
  void choose_prefill(std::int64_t rows, double units);
  void add_span(Entry& entry, std::int64_t count);

  // given.cc
  void provide_rows(RequestId id, std::int64_t index, std::int64_t count, SharedFloats rows,
                    std::vector<SharedFloats> taps);
  void ask_for_rows(Entry& entry);
  std::int64_t rows_at_once(std::int64_t tokens, const std::vector<GivenRows>& given) const;
  std::int64_t ready_rows(const Entry& entry) const;
  std::int64_t whole_spans(const Entry& entry, std::int64_t count) const;

  // thought_pages.cc
  std::int64_t rows_to_next_thought(const Entry& entry) const;
  void settle_thoughts(Entry& entry);
  void evict_thought(Entry& entry, std::int64_t index);
  void demote_thought(Entry& entry);
  std::int64_t common_tokens(const Entry& entry) const;
  std::int64_t most_known(const Entry& entry) const {
    return std::min(entry.most_shared(), common_tokens(entry));
  }
  std::int64_t common_with_base(const Entry& entry, const Entry& base, std::int64_t common) const;
  void count_thoughts(Entry& entry) const;

  // speculation.cc
  bool may_draft(const Entry& entry) const;
  static DraftSource::Text text_of(const Entry& entry);
  StateLog* states_wanted(Entry& entry, std::int64_t count);
  std::int64_t draft_room(const Entry& entry) const;
  DraftLength::Plan plan_drafter(const Entry& entry, std::int64_t room);
  void make_draft(Entry& entry);
  void draft_if_wanted();
  void run_drafter(Entry& entry, std::int64_t count);
  std::int32_t pick_drafted(Entry& entry, const float* row, std::int64_t index);
  void book_draft(Entry& entry, const float* rows, Clock::time_point now);
  void count_draft(Entry& entry, std::int64_t drafted, std::int64_t right);

  // trials.cc
  std::int64_t trial_bytes(const RequestParams& params) const;
  bool wants_trial(const Entry& entry) const;
  bool waits_for_trial(const Entry& entry, std::int32_t token) const;
  TrialRow trial_row(const Entry& entry, const float* row, SamplerScratch& memory) const;
  void begin_trial(Entry& entry);
  void take_sampled(Entry& entry, SampledToken token, Clock::time_point now);
  void book_trial(Entry& entry, std::span<Job> done, Clock::time_point now);
  void settle_trial(Entry& entry, Clock::time_point now);
  void rewind_to_trial(Entry& entry);
  void drop_trial(Entry& entry);
  void give_up_late_trials(Clock::time_point now);
  ThoughtStop trial_stop(Entry& entry) const;
  static bool keeps_trials(const Entry& entry);
  void try_row(Job& job, SamplerScratch& memory) const;
  std::optional<SampledToken> next_of_trial(Entry& entry, const Trial& trial) const;
  void go_on_with(Entry& entry, const Trial& trial, Clock::time_point now);
  void end_by_trial(Entry& entry, ThoughtStop why, Clock::time_point now);
  void choose_trial_rows();

  // step.cc
  bool step();
  void execute(std::size_t first, std::size_t count);
  void fail_or_split(std::size_t first, std::size_t count, ErrorKind kind, const char* what);
  bool interrupted() const;
  void book(std::size_t first, std::size_t count);
  void book_entry(Entry& entry, const float* values, std::int64_t rows, std::span<Job> done,
                  Clock::time_point now);
  void collect_jobs(std::size_t first, std::size_t count);
  void constrain_jobs();
  static bool is_late(const Entry& entry);
  SampledToken choose(Entry& entry, const Job& job, SamplerScratch& memory) const;
  SampledToken forced(const Entry& entry, const float* row, std::int32_t token,
                      SamplerScratch& memory) const;
  SampledToken with_signals(const Entry& entry, const float* row, SampledToken token,
                            SamplerScratch& memory) const;
  void score(Job& job, SamplerScratch& memory) const;
  void run_jobs();
  bool keeps_prefixes(const Entry& entry) const;
  void remember(Entry& entry);
  void remember_end(Entry& entry);
  void count_pages();
  void book_sampled(Entry& entry, SampledToken token, Clock::time_point now);
  std::optional<FinishReason> append_sampled(Entry& entry, SampledToken token,
                                             Clock::time_point now);
  void end_sampled(Entry& entry, FinishReason reason);
  void book_logits(Entry& entry, const float* rows, std::int64_t count);
  void book_attention(Entry& entry);
  void book_states(Entry& entry);
  void book_scores(Entry& entry, std::int64_t rows, std::span<Job> scored);

  TextModel& model;
  PagePool& pool;
  ThreadPool& threads;
  const EngineOptions options;
  const std::int64_t vocab;
  const std::int64_t budget;  // bytes of keys and values
  std::int64_t widest_window = 0;

  mutable std::mutex mutex;
  // Shared by those that copy pages in or out, held alone to give such pages up. After `mutex`.
  std::shared_mutex pages_mutex;
  std::condition_variable transfers_settled;
  std::optional<PrefixTree> prefixes;  // outlives the entries, which pin its nodes
  std::unordered_map<RequestId, std::unique_ptr<Entry>> entries;
  RequestId next_id = 0;
  std::map<RequestId, Entry*> waiting;  // oldest first
  std::vector<Entry*> running;          // oldest first
  std::map<RequestId, Entry*> kept;     // retained
  std::map<AdapterId, std::shared_ptr<const Adapter>> adapters;
  AdapterId next_adapter = 0;
  std::vector<AdapterId> removed_adapters;  // whose prefixes are to be forgotten
  std::vector<Entry*> unsettled;            // forks and transfers to make, releases to carry out
  std::int64_t reserved_bytes = 0;          // of running and retained
  std::int64_t retained_bytes = 0;          // of these, of retained
  EngineStats counters;

  std::mutex run_mutex;  // held by run_until
  std::exception_ptr fault;
  std::vector<Event>* events = nullptr;  // of the run_until under way
  bool return_early = false;
  Clock::time_point tell_by{};  // when tokens of those that go on are told; none: nothing waits
  std::vector<std::shared_ptr<TokenConstraint>> ended_constraints;  // to be given up unlocked
  // The last plan found sequences, and none whose rows are there; nothing was asked for since.
  bool stalled = false;

  // The step under way.
  std::vector<StepSpan> spans;
  struct SpanOwner {
    Entry* entry;
    RequestId id;  // the entry may have ended while the step is booked
    bool trial;    // the span is its trial's
  };
  std::vector<SpanOwner> span_owners;
  StepRows step_rows{};
  std::vector<float> logits;
  StepControl control;
  PrefillPace pace;
  RowCost row_cost;
  // Of an engine with a drafter.
  struct Drafting {
    explicit Drafting(DraftSource& of) : source(of) {}

    DraftSource& source;
    DraftLength length;       // of its drafts, whatever the text
    double cost_s = 0;        // seconds of a draft, or of each of its tokens; 0: there was none
    std::int64_t wanted = 0;  // tokens that the step under way is to have drafted
    bool made = false;        // the draft of the step under way is its
    Clock::duration took{};   // of that step, for drafting

    void begin_step() {
      source.forget_log();
      wanted = 0;
      made = false;
      took = {};
    }
    void observe(double seconds, std::int64_t count) {
      if (!source.one_pass()) seconds /= static_cast<double>(count);
      cost_s = cost_s == 0 ? seconds : cost_s + 0.1 * (seconds - cost_s);
    }
  };
  std::optional<Drafting> drafting;
  std::size_t batch_first = 0, batch_count = 0;  // the spans in the model now
  std::vector<Job> jobs;
  std::vector<std::uint64_t> bitmaps;   // of the jobs with a constraint
  std::vector<SamplerScratch> scratch;  // one for each thread
};

}  // namespace musespark

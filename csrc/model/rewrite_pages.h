// Pages of keys and values made anew from what is in them, in the class without a window: in fewer
// bits, or with fewer rows. Between steps, all of the sequence's tokens accepted. Each KV head of
// each layer is one piece of work; the bits do not depend on the threads.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "cache/sequence.h"
#include "model/text_model.h"

namespace musespark {

// Seals the full pages first .. end - 1 again as KvForm::demoted, where the pool seals. Gives the
// bytes that the sequence holds less. Throws MemoryBudgetExceeded; pages before the one that failed
// are demoted then.
std::int64_t demote_pages(Sequence& sequence, std::int64_t first, std::int64_t end,
                          ThreadPool& threads);

// Of the slots from page `first` on to the end, leaves `keep`: for each KV head those that
// choose_rows (ops/choose_rows.h) names, with the queries in `log`. Throws MemoryBudgetExceeded;
// nothing has changed then.
void evict_rows(Sequence& sequence, std::int64_t first, std::int64_t keep, const QueryLog& log,
                ThreadPool& threads);

}  // namespace musespark

// Retained sequences to and from files: see engine.h.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "decode/engine_impl.h"

namespace musespark {
namespace {

void check_lengths(SavedLengths lengths, std::int64_t tokens) {
  if (lengths.length < 1 || lengths.length != tokens) {
    throw InvalidRequest("length: got " + std::to_string(lengths.length) + ", allowed is " +
                         std::to_string(tokens) + ", the number of tokens, and at least 1");
  }
  if (lengths.prompt < 0 || lengths.prompt > lengths.length) {
    throw InvalidRequest("prompt: got " + std::to_string(lengths.prompt) + ", allowed is 0 to " +
                         std::to_string(lengths.length));
  }
}

void check_page(const Transfer& transfer, std::int64_t index, std::size_t bytes) {
  const auto count = static_cast<std::int64_t>(transfer.pages.size());
  if (index < 0 || index >= count) {
    throw InvalidRequest("index: got " + std::to_string(index) + ", allowed is 0 to " +
                         std::to_string(count - 1));
  }
  const std::int64_t wanted = transfer.pages[static_cast<std::size_t>(index)].bytes;
  if (static_cast<std::int64_t>(bytes) != wanted) {
    throw InvalidRequest("bytes: got " + std::to_string(bytes) + ", the page has " +
                         std::to_string(wanted));
  }
}

// The sequences whose pages a file holds: without pages that were made anew, which it has no place
// for; they are computed again.
std::pair<const Sequence*, const Sequence*> to_save(const Entry& entry) {
  const Sequence* whole = entry.kv ? &*entry.kv : nullptr;
  const Sequence* prompt = entry.prompt_kv ? &*entry.prompt_kv : nullptr;
  if (prompt != nullptr && prompt->rewritten()) prompt = nullptr;
  if (whole != nullptr && whole->rewritten()) return {prompt, nullptr};
  return {whole, prompt};
}

}  // namespace

void Engine::Impl::begin_save(RequestId id) {
  const std::lock_guard lock(mutex);
  Entry& entry = retained(id, "id");
  if (entry.transfer) {
    throw InvalidRequest("id: got " + std::to_string(id) +
                         ", whose pages are being saved or restored");
  }
  entry.transfer.emplace();
  ++entry.pins;
  unsettled.push_back(&entry);
}

std::int64_t Engine::Impl::restored_bytes(SavedLengths lengths) const {
  const std::int64_t bytes = pool.bytes_for(lengths.length, 1);
  return lengths.prompt == 0 ? bytes : bytes + prompt_kv_bytes(lengths.prompt);
}

RequestId Engine::Impl::begin_restore(SavedSequence saved) {
  check_tokens(saved.tokens, vocab, true);
  const auto count = static_cast<std::int64_t>(saved.tokens.size());
  check_lengths(saved.lengths, count);
  if (count > options.context) {
    throw ContextOverflow("the sequence has " + std::to_string(count) +
                              " tokens, the context has " + std::to_string(options.context),
                          count, options.context);
  }
  RequestParams params;
  params.retain = true;
  params.adapter = saved.adapter;
  auto entry = std::make_unique<Entry>(std::move(saved.tokens), std::move(params), vocab, 0);
  const std::int64_t bytes = restored_bytes(saved.lengths);
  if (bytes > budget) {
    throw MemoryBudgetExceeded("the sequence needs " + std::to_string(bytes) +
                               " bytes of keys and values for " + std::to_string(count) +
                               " tokens, the memory budget is " + std::to_string(budget));
  }
  entry->short_rope = saved.short_rope;
  entry->transfer.emplace();
  entry->transfer->lengths = saved.lengths;
  entry->transfer->restores = true;
  return begin_transfer(std::move(entry));
}

RequestId Engine::Impl::begin_export(std::vector<std::int32_t> tokens, std::int64_t most,
                                     std::optional<AdapterId> adapter) {
  check_tokens(tokens, vocab, true);
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (most < 1 || most > count) {
    throw InvalidRequest("most: got " + std::to_string(most) + ", allowed is 1 to " +
                         std::to_string(count) + ", the number of tokens");
  }
  RequestParams params;
  params.retain = true;
  params.adapter = adapter;
  auto entry = std::make_unique<Entry>(std::move(tokens), std::move(params), vocab, 0);
  entry->transfer.emplace();
  entry->transfer->exports = most;
  return begin_transfer(std::move(entry));
}

// Takes in a retained sequence that is made by its transfer.
RequestId Engine::Impl::begin_transfer(std::unique_ptr<Entry> entry) {
  entry->phase = Phase::retained;
  entry->pins = 1;
  const std::lock_guard lock(mutex);
  const auto& adapter = entry->params.adapter;
  if (adapter) entry->adapter = adapter_of(*adapter, "adapter");
  const RequestId id = next_id++;
  entry->id = id;
  kept.emplace(id, entry.get());
  unsettled.push_back(entry.get());
  entries.emplace(id, std::move(entry));
  return id;
}

// In the step's thread, with the mutex held.
void Engine::Impl::settle_transfer(Entry& entry) {
  Transfer& transfer = *entry.transfer;
  entry.last_used = counters.steps;
  try {
    if (transfer.exports > 0) attach_exported(entry);
    if (transfer.restores) {
      place_restored(entry);
    }
    const auto [first, second] = to_save(entry);
    if (first != nullptr && first->length() > 0) {
      transfer.lengths = {first->length(), second == nullptr ? 0 : second->length()};
      transfer.pages = saved_pages(pool, transfer.lengths);
      transfer.at = locate_pages(transfer.pages, *first, second);
    }
  } catch (...) {
    transfer.error = std::current_exception();
  }
  transfer.settled = true;
  transfers_settled.notify_all();
}

// As any retained sequence it holds the pages themselves, not the tree's nodes. It pushes no other
// one out: what is on its way to a file is in nobody's way.
void Engine::Impl::attach_exported(Entry& entry) {
  if (!prefixes) return;
  entry.short_rope = wants_short_rope(entry);
  const std::int64_t usable =
      prefixes->find(entry.prefix_key(), entry.tokens, entry.transfer->exports).usable;
  if (usable == 0) return;
  const std::int64_t bytes = pool.bytes_for(usable, 1);
  if (reserved_bytes + prefixes->pinned_bytes() + bytes > budget) return;
  entry.kv = prefixes->take(entry.prefix_key(), entry.tokens, usable).first;
  set_reserved(entry, 0, bytes);
  retained_bytes += bytes;
}

void Engine::Impl::place_restored(Entry& entry) {
  Transfer& transfer = *entry.transfer;
  const std::int64_t bytes = restored_bytes(transfer.lengths);
  if (!make_room(bytes)) {
    throw MemoryBudgetExceeded("the sequence needs " + std::to_string(bytes) +
                               " bytes of keys and values; running requests have reserved " +
                               std::to_string(reserved_bytes - retained_bytes) +
                               " of the memory budget of " + std::to_string(budget));
  }
  auto placed = place_pages(pool, transfer.lengths, saved_pages(pool, transfer.lengths));
  entry.kv = std::move(placed.first);
  entry.prompt_kv = std::move(placed.second);
  set_reserved(entry, 0, bytes);
  retained_bytes += bytes;
}

Transfer& Engine::Impl::transfer_of(RequestId id) {
  const auto found = kept.find(id);
  if (found == kept.end() || !found->second->transfer) {
    throw InvalidRequest("id: got " + std::to_string(id) +
                         ", allowed is a sequence that is being saved or restored");
  }
  return *found->second->transfer;
}

bool Engine::Impl::wait_transfer(RequestId id, double seconds) {
  std::unique_lock lock(mutex);
  transfer_of(id);
  const auto settled = [&] { return transfer_of(id).settled; };
  transfers_settled.wait_for(lock, std::chrono::duration<double>(seconds), settled);
  const Transfer& transfer = transfer_of(id);
  if (transfer.error) std::rethrow_exception(transfer.error);
  return transfer.settled;
}

SavedSequence Engine::Impl::saved(RequestId id) {
  const std::lock_guard lock(mutex);
  const Transfer& transfer = transfer_of(id);
  const Entry& entry = *kept.at(id);
  SavedSequence out;
  out.short_rope = entry.short_rope;
  out.adapter = entry.params.adapter;
  if (transfer.at.empty()) return out;
  out.lengths = transfer.lengths;
  out.tokens.assign(entry.tokens.begin(), entry.tokens.begin() + transfer.lengths.length);
  return out;
}

// A page's bytes, which stay where they are while `hold` is held; null where they are gone.
std::uint8_t* Engine::Impl::page_bytes(RequestId id, std::int64_t index, std::size_t bytes,
                                       SavedPage* page, std::shared_lock<std::shared_mutex>* hold) {
  const std::lock_guard lock(mutex);
  const Transfer& transfer = transfer_of(id);
  check_page(transfer, index, bytes);
  if (transfer.at.empty()) return nullptr;
  *hold = std::shared_lock(pages_mutex);
  *page = transfer.pages[static_cast<std::size_t>(index)];
  return transfer.at[static_cast<std::size_t>(index)];
}

bool Engine::Impl::read_page(RequestId id, std::int64_t index, std::span<std::uint8_t> bytes) {
  SavedPage page{};
  std::shared_lock<std::shared_mutex> hold;
  const std::uint8_t* from = page_bytes(id, index, bytes.size(), &page, &hold);
  if (from == nullptr) return false;
  std::memcpy(bytes.data(), from, bytes.size());
  clear_unwritten(pool, page, bytes.data());
  return true;
}

bool Engine::Impl::write_page(RequestId id, std::int64_t index,
                              std::span<const std::uint8_t> bytes) {
  SavedPage page{};
  std::shared_lock<std::shared_mutex> hold;
  std::uint8_t* to = page_bytes(id, index, bytes.size(), &page, &hold);
  if (to == nullptr) return false;
  std::memcpy(to, bytes.data(), bytes.size());
  return true;
}

void Engine::Impl::end_transfer(RequestId id) {
  const std::lock_guard lock(mutex);
  transfer_of(id);
  const std::unique_lock nobody_copies(pages_mutex);
  Entry& entry = *kept.at(id);
  entry.transfer.reset();
  if (--entry.pins == 0 && entry.released) unsettled.push_back(&entry);
}

std::vector<SavedPage> Engine::Impl::page_list(SavedLengths lengths) const {
  check_lengths(lengths, lengths.length);
  return saved_pages(pool, lengths);
}

void Engine::begin_save(RequestId id) { impl_->begin_save(id); }
RequestId Engine::begin_restore(SavedSequence saved) {
  return impl_->begin_restore(std::move(saved));
}
RequestId Engine::begin_export(std::vector<std::int32_t> tokens, std::int64_t most,
                               std::optional<AdapterId> adapter) {
  return impl_->begin_export(std::move(tokens), most, adapter);
}
bool Engine::wait_transfer(RequestId id, double seconds) {
  return impl_->wait_transfer(id, seconds);
}
SavedSequence Engine::saved(RequestId id) { return impl_->saved(id); }
bool Engine::read_page(RequestId id, std::int64_t index, std::span<std::uint8_t> bytes) {
  return impl_->read_page(id, index, bytes);
}
bool Engine::write_page(RequestId id, std::int64_t index, std::span<const std::uint8_t> bytes) {
  return impl_->write_page(id, index, bytes);
}
void Engine::end_transfer(RequestId id) { impl_->end_transfer(id); }
std::vector<SavedPage> Engine::page_list(SavedLengths lengths) const {
  return impl_->page_list(lengths);
}

}  // namespace musespark

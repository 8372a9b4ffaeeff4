#include "cache/prefix_tree.h"

#include <algorithm>
#include <string>

#include "base/errors.h"

namespace musespark {

PrefixTree::PrefixTree(PagePool& pool) : pool_(pool) {
  pool_.on_full([this] { return evict(); });
}

PrefixTree::~PrefixTree() {
  pool_.on_full(nullptr);
  for (auto& [key, root] : roots_) clear(root.get());
}

std::int64_t PrefixTree::first_page(int page_class, std::int64_t length) const {
  return first_visible(length, pool_.window(page_class)) / kPageTokens;
}

// The nodes of the first `pages` pages of `tokens`, as far as there are any.
std::vector<PrefixTree::Node*> PrefixTree::path(const PrefixKey& key,
                                                std::span<const std::int32_t> tokens,
                                                std::int64_t pages) const {
  std::vector<Node*> out;
  const auto root = roots_.find(key);
  if (root == roots_.end()) return out;
  const Node* at = root->second.get();
  Tokens page;
  for (std::int64_t i = 0; i < pages; ++i) {
    std::copy_n(tokens.data() + i * kPageTokens, kPageTokens, page.begin());
    const auto found = at->children.find(page);
    if (found == at->children.end()) break;
    out.push_back(found->second.get());
    at = out.back();
  }
  return out;
}

PrefixTree::Found PrefixTree::find(const PrefixKey& key, std::span<const std::int32_t> tokens,
                                   std::int64_t most) const {
  const std::vector<Node*> nodes = path(key, tokens, most / kPageTokens);
  auto pages = static_cast<std::int64_t>(nodes.size());
  const Found all{pages * kPageTokens, pages * kPageTokens};
  // Down to the first length whose pages are there in every class.
  for (; pages > 0; --pages) {
    bool usable = true;
    for (int c = pool_.classes() - 1; c >= 0 && usable; --c) {  // those that miss pages first
      for (std::int64_t p = first_page(c, pages * kPageTokens); p < pages && usable; ++p) {
        usable = nodes[static_cast<std::size_t>(p)]->pages[static_cast<std::size_t>(c)] != kNone;
      }
    }
    if (usable) break;
  }
  return {all.known, pages * kPageTokens};
}

std::pair<Sequence, PrefixTree::Pin> PrefixTree::take(const PrefixKey& key,
                                                      std::span<const std::int32_t> tokens,
                                                      std::int64_t length) {
  const std::int64_t pages = length / kPageTokens;
  const std::vector<Node*> nodes = path(key, tokens, pages);
  if (static_cast<std::int64_t>(nodes.size()) < pages) throw Error("[prefix_tree] take");
  std::vector<Sequence::Pages> held(static_cast<std::size_t>(pool_.classes()));
  for (int c = 0; c < pool_.classes(); ++c) {
    Sequence::Pages& own = held[static_cast<std::size_t>(c)];
    own.first = first_page(c, length);
    for (std::int64_t p = own.first; p < pages; ++p) {
      own.ids.push_back(nodes[static_cast<std::size_t>(p)]->pages[static_cast<std::size_t>(c)]);
    }
  }
  Sequence sequence(pool_, length, held);
  ++clock_;
  for (Node* node : nodes) {
    touch(node);
    if (node->pins++ == 0) pinned_bytes_ += node->bytes;
  }
  return {std::move(sequence), Pin(this, nodes.back())};
}

void PrefixTree::insert(const PrefixKey& key, std::span<const std::int32_t> tokens,
                        const Sequence& sequence, std::span<const std::int64_t> marks) {
  auto root = roots_.find(key);
  if (root == roots_.end()) root = roots_.emplace(key, std::make_unique<Node>()).first;
  ++clock_;
  std::vector<Node*> nodes;
  Node* at = root->second.get();
  const auto most = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t p = 0; p < std::min(most, sequence.length()) / kPageTokens; ++p) {
    at = child(at, tokens.data() + p * kPageTokens);
    nodes.push_back(at);
    touch(at);
    for (int c = 0; c < pool_.classes(); ++c) {
      if (pool_.window(c) == 0) hold(at, c, sequence.page(c, p));
    }
  }
  keep_windows(nodes, sequence, marks);
}

// In classes with a window: takes the pages in sight of the path's end and of the marks, and gives
// up those that were in sight of an earlier end only.
void PrefixTree::keep_windows(std::span<Node* const> path, const Sequence& sequence,
                              std::span<const std::int64_t> marks) {
  const auto pages = static_cast<std::int64_t>(path.size());
  for (int c = 0; c < pool_.classes(); ++c) {
    if (pool_.window(c) == 0) continue;
    const std::int64_t seen = first_page(c, pages * kPageTokens);
    for (Node* node : path) {
      for (const std::int64_t mark : marks) {
        if (node->index >= first_page(c, mark) && (node->index + 1) * kPageTokens <= mark) {
          node->marked = true;
        }
      }
      if (node->marked || node->index >= seen) {
        hold(node, c, sequence.page(c, node->index));
      } else {
        let_go(node, c);
      }
    }
  }
}

PrefixTree::Node* PrefixTree::child(Node* parent, const std::int32_t* tokens) {
  Tokens page;
  std::copy_n(tokens, kPageTokens, page.begin());
  const auto found = parent->children.find(page);
  if (found != parent->children.end()) return found->second.get();
  auto node = std::make_unique<Node>();
  node->parent = parent;
  node->index = parent->index + 1;
  node->last_used = clock_;
  node->pages.assign(static_cast<std::size_t>(pool_.classes()), kNone);
  Node* out = node.get();
  const auto place = parent->children.emplace(page, std::move(node)).first;
  out->tokens = &place->first;
  // The parent is a leaf no longer: its place in the set is the child's.
  auto leaf = leaves_.extract({parent->last_used, parent});
  if (leaf.empty()) {
    try {
      leaves_.emplace(clock_, out);
    } catch (...) {
      parent->children.erase(place);
      throw;
    }
  } else {
    leaf.value() = {clock_, out};
    leaves_.insert(std::move(leaf));
  }
  return out;
}

void PrefixTree::touch(Node* node) noexcept {
  auto leaf = leaves_.extract({node->last_used, node});
  node->last_used = clock_;
  if (leaf.empty()) return;
  leaf.value().first = clock_;
  leaves_.insert(std::move(leaf));
}

void PrefixTree::count(Node* node, int page_class, std::int64_t bytes) noexcept {
  if (pool_.window(page_class) > 0) return;
  node->bytes += bytes;
  if (node->pins > 0) pinned_bytes_ += bytes;
}

void PrefixTree::hold(Node* node, int page_class, PageId page) noexcept {
  PageId& own = node->pages[static_cast<std::size_t>(page_class)];
  if (own != kNone || page == kNone) return;
  pool_.share(page, !pool_.seals());
  pool_.set_kept(page, true);
  own = page;
  count(node, page_class, pool_.full_bytes(page_class, pool_.form(page)));
}

void PrefixTree::let_go(Node* node, int page_class) noexcept {
  PageId& own = node->pages[static_cast<std::size_t>(page_class)];
  if (own == kNone) return;
  pool_.set_kept(own, false);
  count(node, page_class, -pool_.full_bytes(page_class, pool_.form(own)));
  pool_.release(std::exchange(own, kNone), !pool_.seals());
}

void PrefixTree::shrink(std::int64_t bytes) noexcept {
  while (pool_.usage().kept > bytes && evict()) {
  }
}

bool PrefixTree::evict() noexcept {
  Node* first = nullptr;
  for (const auto& [used, node] : leaves_) {
    if (node->pins > 0) continue;
    if (first == nullptr) first = node;
    const bool alone = std::ranges::any_of(
        node->pages, [this](PageId page) { return page != kNone && pool_.references(page) == 1; });
    if (alone) {
      erase(node);
      return true;
    }
  }
  if (first == nullptr) return evict_window_page();
  erase(first);  // a sequence still has its pages; what is above may be free
  return true;
}

// Where all nodes are pinned: a page that no sequence has.
bool PrefixTree::evict_window_page() noexcept {
  for (const auto& [used, leaf] : leaves_) {
    for (Node* node = leaf; node->index >= 0; node = node->parent) {
      for (int c = 0; c < pool_.classes(); ++c) {
        const PageId page = node->pages[static_cast<std::size_t>(c)];
        if (pool_.window(c) == 0 || page == kNone || pool_.references(page) > 1) continue;
        let_go(node, c);
        return true;
      }
    }
  }
  return false;
}

void PrefixTree::erase(Node* leaf) noexcept {
  for (int c = 0; c < pool_.classes(); ++c) let_go(leaf, c);
  auto place = leaves_.extract({leaf->last_used, leaf});
  Node* parent = leaf->parent;
  parent->children.erase(parent->children.find(*leaf->tokens));
  if (!parent->children.empty() || parent->index < 0) return;
  place.value() = {parent->last_used, parent};
  leaves_.insert(std::move(place));
}

// Gives everything below `node` back, from the ends of the paths on.
void PrefixTree::clear(Node* node) noexcept {
  Node* at = node;
  while (!at->children.empty() || at != node) {
    if (!at->children.empty()) {
      at = at->children.begin()->second.get();
    } else {
      Node* parent = at->parent;
      erase(at);
      at = parent;
    }
  }
}

void PrefixTree::drop_adapter(std::int64_t adapter) {
  for (auto root = roots_.begin(); root != roots_.end();) {
    if (root->first.adapter != adapter) {
      ++root;
      continue;
    }
    clear(root->second.get());
    root = roots_.erase(root);
  }
}

void PrefixTree::unpin(Node* node) noexcept {
  for (; node->index >= 0; node = node->parent) {
    if (--node->pins == 0) pinned_bytes_ -= node->bytes;
  }
}

PrefixTree::Pin& PrefixTree::Pin::operator=(Pin&& other) noexcept {
  if (this == &other) return *this;
  reset();
  tree_ = other.tree_;
  node_ = std::exchange(other.node_, nullptr);
  return *this;
}

void PrefixTree::Pin::reset() noexcept {
  if (node_ != nullptr) tree_->unpin(std::exchange(node_, nullptr));
}

std::int64_t PrefixTree::Pin::bytes() const {
  if (node_ == nullptr) return 0;
  return tree_->pool_.shared_bytes((node_->index + 1) * kPageTokens);
}

}  // namespace musespark
